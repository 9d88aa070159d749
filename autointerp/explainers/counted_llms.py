"""Endpoints whose calls all stand under one purpose and are added up, for a component that lets others ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from autointerp.llm.asking import LLM, Answer, AskFailed, LLMs
from autointerp.llm.protocol import NO_USAGE, Capability, Completion, CompletionRequest, Usage

T = TypeVar("T")


class CountedLLMs:
    """Implements ``asking.LLMs`` over another; lives for one latent."""

    def __init__(self, llms: LLMs, purpose: str) -> None:
        self._llms, self._purpose = llms, purpose
        self.usage = NO_USAGE
        """Of all calls so far, failed ones among them."""

    def of(self, endpoint: str, purpose: str) -> LLM:
        """The endpoint, under our purpose."""
        return _CountedLLM(self._llms.of(endpoint, self._purpose), self)

    def add(self, usage: Usage) -> None:
        """Enter what a call took."""
        self.usage = self.usage + usage


class _CountedLLM:
    """Implements ``asking.LLM``."""

    def __init__(self, llm: LLM, counts: CountedLLMs) -> None:
        self._llm, self._counts = llm, counts

    @property
    def name(self) -> str:
        return self._llm.name

    @property
    def model(self) -> str:
        return self._llm.model

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self._llm.capabilities

    async def ask(self, request: CompletionRequest, read: Callable[[Completion], T]) -> Answer[T]:
        """See ``asking.LLM.ask``."""
        try:
            answer = await self._llm.ask(request, read)
        except AskFailed as failed:
            self._counts.add(failed.usage)
            raise
        self._counts.add(answer.usage)
        return answer
