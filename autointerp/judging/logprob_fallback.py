"""Answers whose log-probabilities a server cannot write are asked for again without them: the answer itself may be good."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from autointerp.llm.asking import LLM, Answer, NoLogprobs
from autointerp.llm.protocol import Capability, Completion, CompletionRequest

T = TypeVar("T")


class WithoutLogprobsAtNeed:
    """Implements ``asking.LLM`` over another one, for callers that can do without probabilities."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    @property
    def name(self) -> str:
        """Name of the endpoint in the configuration."""
        return self._llm.name

    @property
    def model(self) -> str:
        """Model, as the configuration names it."""
        return self._llm.model

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the server was found to do."""
        return self._llm.capabilities

    async def ask(self, request: CompletionRequest, read: Callable[[Completion], T]) -> Answer[T]:
        """See ``asking.LLM.ask``; the answer has no log-probabilities where the server could not give them."""
        try:
            return await self._llm.ask(request, read)
        except NoLogprobs as failed:
            answer = await self._llm.ask(request.model_copy(update={"top_logprobs": 0}), read)
            return Answer(answer.value, answer.completion, failed.usage + answer.usage)
