"""One endpoint as a component sees it: a request goes in, a valid answer or a typed failure comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from autointerp.config import canonical_json
from autointerp.failure import Failure, FailureKind
from autointerp.llm.asking import Answer, AskFailed, BadAnswer, NoLogprobs
from autointerp.llm.call_errors import BadLogprobs, CallError, Transient
from autointerp.llm.protocol import NO_USAGE, Capability, Completion, CompletionRequest, Message, Usage

if TYPE_CHECKING:
    from autointerp.llm.session import CallPlace, LLMSession

T = TypeVar("T")

MOST_REPAIRS = 2
"""Times that an answer which does not do is asked again, with what is wrong with it."""
_SHOWN_BYTES = 2000
"""Of a bad answer, as much is shown to the model again."""


class BoundLLM:
    """Implements ``asking.LLM`` over a session."""

    def __init__(self, session: LLMSession, place: CallPlace) -> None:
        self._session = session
        self._place = place

    @property
    def name(self) -> str:
        """Name of the endpoint in the configuration."""
        return self._session.endpoint.name

    @property
    def model(self) -> str:
        """Model, as the configuration names it."""
        return self._session.endpoint.model

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the server was found to do."""
        return self._session.capabilities

    async def ask(self, request: CompletionRequest, read: Callable[[Completion], T]) -> Answer[T]:
        """See ``asking.LLM.ask``."""
        self._check_capabilities(request)
        if request.json_schema is not None and Capability.JSON_SCHEMA not in self.capabilities:
            request = _with_schema_said(request)
        usage = NO_USAGE
        repairs = 0
        while True:
            completion = await self._complete(request, usage)
            usage = usage + completion.usage
            if completion.finish_reason == "refusal":
                raise AskFailed(_failure(FailureKind.REFUSED, "the model refused to answer"), usage)
            # where a text's own tokens are scored, the answer is not read
            if completion.finish_reason == "length" and not request.prompt_logprobs:
                message = (
                    f"the answer was cut off at {request.max_tokens + self._session.endpoint.thinking_tokens} tokens"
                )
                raise AskFailed(_failure(FailureKind.TRUNCATED, message), usage)
            try:
                return Answer(read(completion), completion, usage)
            except BadAnswer as bad:
                if repairs == MOST_REPAIRS or request.text is not None:
                    asked = f"after {repairs} repairs " if repairs else ""
                    message = f"no valid answer {asked}was given: {bad}"
                    raise AskFailed(_failure(FailureKind.UNPARSEABLE, message), usage) from None
                repairs += 1
                request = _repair(request, completion.text, bad)

    async def _complete(self, request: CompletionRequest, spent: Usage) -> Completion:
        try:
            return await self._session.complete(request, self._place)
        except CallError as error:
            failed = NoLogprobs if request.top_logprobs and _is_about_logprobs(error) else AskFailed
            raise failed(_failure(error.kind, str(error)), spent) from None

    def _check_capabilities(self, request: CompletionRequest) -> None:
        for asked, capability in (
            (request.top_logprobs, Capability.LOGPROBS),
            (request.prompt_logprobs, Capability.PROMPT_LOGPROBS),
        ):
            if asked and capability not in self.capabilities:
                message = f"the endpoint {self.name!r} was found not to give {capability.value}"
                raise AskFailed(_failure(FailureKind.MISSING_CAPABILITY, message))


def _is_about_logprobs(error: CallError) -> bool:
    # 500: servers that cannot write -inf answer so (``retrying.most_tries``)
    return isinstance(error, BadLogprobs) or (isinstance(error, Transient) and error.status == 500)


def _with_schema_said(request: CompletionRequest) -> CompletionRequest:
    """The request with its schema in words, for a server that cannot be bound by it."""
    said = f"Answer with JSON that follows this schema, and nothing else: {canonical_json(request.json_schema)}"
    if request.text is not None:
        return request
    *before, last = request.messages
    message = last.model_copy(update={"content": f"{last.content}\n\n{said}"})
    return request.model_copy(update={"messages": (*before, message)})


def _repair(request: CompletionRequest, answer: str, bad: BadAnswer) -> CompletionRequest:
    """The conversation carried on with the bad answer and what is wrong with it; the earlier turns stay a prefix."""
    shown = answer.encode("utf-8", "replace")[:_SHOWN_BYTES].decode("utf-8", "ignore")
    turns = (
        Message(role="assistant", content=shown or "(nothing)"),
        Message(role="user", content=f"That answer cannot be used: {bad}. Give the whole answer again, corrected."),
    )
    return request.model_copy(update={"messages": request.messages + turns})


def _failure(kind: FailureKind, message: str) -> Failure:
    return Failure(kind=kind, message=message)
