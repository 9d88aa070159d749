"""An endpoint without a server: it answers from the configuration, for tests and dry runs."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from autointerp.llm.call_errors import Rejected
from autointerp.llm.endpoints.base import Endpoint
from autointerp.llm.protocol import Capability, CompletionRequest
from autointerp.llm.validation import estimated_usage

Scripted = Callable[[CompletionRequest], "str | Mapping[str, Any] | Exception"]
"""Answers a request with a text, a whole reply as the server would send it, or an error to raise."""

_PIECE = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")
_OWN, _OTHER = math.log(0.9), math.log(0.1)


class Rule(BaseModel):
    """One answer and when it is given."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    contains: str
    """Text that must stand somewhere in the request."""
    reply: str
    """Text of the answer."""


class ScriptedEndpoint(Endpoint):
    """Answers that stand in the configuration, the same for the same request whatever came before it."""

    kind: Literal["scripted"] = "scripted"
    """Kind of endpoint."""
    model: str = "scripted"
    """Name of the model in results."""
    rules: tuple[Rule, ...] = ()
    """Looked at in order; the first whose text stands in the request gives the answer."""
    replies: tuple[str, ...] = ()
    """Answers where no rule fits; which of them, a hash of the request decides."""
    capabilities: tuple[Capability, ...] = ()
    """What it says it can do; it then gives log-probabilities (made up: 0.9 for what is said) where they are asked."""
    usd_per_million_input_tokens: float | None = 0.0
    """Price of a million prompt tokens."""
    usd_per_million_output_tokens: float | None = 0.0
    """Price of a million answer tokens."""

    @model_validator(mode="after")
    def _something_to_say(self) -> ScriptedEndpoint:
        if not (self.rules or self.replies):
            raise ValueError("give it rules, or replies, or both")
        return self

    def open(self) -> ScriptedClient:
        """A client that answers from the configuration."""
        return ScriptedClient(self.answer, frozenset(self.capabilities), self.model)

    def known_capabilities(self) -> frozenset[Capability]:
        """As configured."""
        return frozenset(self.capabilities)

    def answer(self, request: CompletionRequest) -> str | Exception:
        """The answer to a request, Rejected where there is none."""
        asked = "\n".join(message.content for message in request.messages) + (request.text or "")
        for rule in self.rules:
            if rule.contains in asked:
                return rule.reply
        if not self.replies:
            return Rejected(f"no rule of the scripted endpoint {self.name!r} fits the request")
        digest = hashlib.sha256(request.model_dump_json().encode("utf-8", "replace")).digest()
        return self.replies[int.from_bytes(digest[:8], "big") % len(self.replies)]


class ScriptedClient:
    """A client that is a function; ``requests`` has what was sent, ``bounds`` whether a schema was to be sent with it."""

    def __init__(
        self, answer: Scripted, capabilities: frozenset[Capability] = frozenset(), model: str = "scripted"
    ) -> None:
        self._answer, self._capabilities, self._model = answer, capabilities, model
        self.requests: list[CompletionRequest] = []
        self.bounds: list[bool] = []
        self.closed = False

    async def send(self, request: CompletionRequest, deadline_s: float, *, bound: bool) -> str:
        """The function's answer in the shape of OpenAI's API."""
        self.requests.append(request)
        self.bounds.append(bound)
        given = self._answer(request)
        if isinstance(given, Exception):
            raise given
        return json.dumps(self._reply(request, given) if isinstance(given, str) else given)

    async def close(self) -> None:
        """Nothing is open; ``closed`` says that this was called."""
        self.closed = True

    def _reply(self, request: CompletionRequest, text: str) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if request.text is None:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        if request.top_logprobs and Capability.LOGPROBS in self._capabilities:
            choice["logprobs"] = {"content": [_entry(piece) for piece in _PIECE.findall(text)]}
        if request.prompt_logprobs and Capability.PROMPT_LOGPROBS in self._capabilities:
            entries = [_alternatives(piece) for piece in _PIECE.findall(request.text or "")]
            choice["prompt_logprobs"] = [None, *entries[1:]]
        usage = estimated_usage(request, text)
        return {
            "model": self._model,
            "choices": [choice],
            "usage": {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens},
        }


def _odds(piece: str) -> dict[str, float]:
    """What is said at 0.9, and for a 0 or a 1 the other one at 0.1."""
    other = {"0": "1", "1": "0"}.get(piece.strip())
    return {piece: _OWN} if other is None else {piece: _OWN, piece.replace(piece.strip(), other): _OTHER}


def _entry(piece: str) -> dict[str, Any]:
    top = [{"token": text, "logprob": logprob} for text, logprob in _odds(piece).items()]
    return {**top[0], "top_logprobs": top}


def _alternatives(piece: str) -> dict[str, Any]:
    entries = enumerate(_odds(piece).items())
    return {str(at): {"logprob": logprob, "rank": at + 1, "decoded_token": text} for at, (text, logprob) in entries}
