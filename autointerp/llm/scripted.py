"""LLMs without a server, for tests of explainers and scorers: a function answers what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from autointerp.failure import Failure, FailureKind
from autointerp.llm.asking import Answer, AskFailed, BadAnswer
from autointerp.llm.protocol import Capability, Completion, CompletionRequest, Message, Usage

T = TypeVar("T")
ScriptedAnswer = Callable[[CompletionRequest], "str | Completion"]
"""Answers a request with a text or a whole completion, or raises AskFailed."""

MOST_REPAIRS = 2


class ScriptedLLM:
    """An endpoint that is a function; ``asked`` has the requests that it got, repairs among them, in order."""

    def __init__(
        self,
        answer: ScriptedAnswer,
        capabilities: frozenset[Capability] = frozenset(),
        model: str = "scripted",
        name: str = "default",
        asked: list[CompletionRequest] | None = None,
    ) -> None:
        self._answer = answer
        self.capabilities = capabilities
        self.model = model
        self.name = name
        self.asked: list[CompletionRequest] = [] if asked is None else asked

    async def ask(self, request: CompletionRequest, read: Callable[[Completion], T]) -> Answer[T]:
        """As ``asking.LLM.ask``: truncated and refused answers fail, a bad one is repaired twice at most."""
        usage = Usage(cost_usd=0.0)
        repairs = 0
        while True:
            self.asked.append(request)
            try:
                given = self._answer(request)
            except AskFailed as failed:
                raise AskFailed(failed.failure, usage + failed.usage) from None
            if isinstance(given, str):
                given = Completion(text=given, finish_reason="stop", model=self.model, usage=_usage(request, given))
            usage = usage + given.usage
            if given.finish_reason == "length":
                raise AskFailed(Failure(kind=FailureKind.TRUNCATED, message="the answer was cut off"), usage)
            if given.finish_reason == "refusal":
                raise AskFailed(Failure(kind=FailureKind.REFUSED, message="the model refused to answer"), usage)
            try:
                return Answer(read(given), given, usage)
            except BadAnswer as bad:
                if repairs == MOST_REPAIRS or request.text is not None:
                    raise AskFailed(Failure(kind=FailureKind.UNPARSEABLE, message=str(bad)), usage) from None
                repairs += 1
                request = request.model_copy(update={"messages": _repair(request, given.text, str(bad))})


class ScriptedLLMs:
    """Endpoints that all are one function; ``asked`` has all requests, ``purposes`` those that were named to ``of``."""

    def __init__(
        self,
        answer: ScriptedAnswer,
        capabilities: frozenset[Capability] = frozenset(),
        model: str = "scripted",
    ) -> None:
        self._answer = answer
        self._capabilities = capabilities
        self._model = model
        self.asked: list[CompletionRequest] = []
        self.purposes: list[tuple[str, str]] = []

    def of(self, endpoint: str, purpose: str) -> ScriptedLLM:
        """The function as an endpoint of that name."""
        self.purposes.append((endpoint, purpose))
        return ScriptedLLM(self._answer, self._capabilities, self._model, endpoint or "default", self.asked)


def _repair(request: CompletionRequest, reply: str, reason: str) -> tuple[Message, ...]:
    """The conversation with the bad answer and what is wrong with it."""
    return (
        *request.messages,
        Message(role="assistant", content=reply[:2000]),
        Message(role="user", content=f"That answer does not do: {reason}. Answer again."),
    )


def _usage(request: CompletionRequest, answer: str) -> Usage:
    """A token for each four characters, at no price."""
    asked = sum(len(message.content) for message in request.messages) + len(request.text or "")
    return Usage(input_tokens=-(-asked // 4), output_tokens=-(-len(answer) // 4), cost_usd=0.0)
