"""What is asked of a language model and what it answers. Types only: clients live in ``endpoints/``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Capability(StrEnum):
    """What a server can do beyond plain text. It is probed, not assumed, before anything is spent."""

    JSON_SCHEMA = "json_schema"
    """Answers follow a JSON schema (not only: the parameter is accepted)."""
    LOGPROBS = "logprobs"
    """Log-probabilities of answer tokens with their strongest alternatives."""
    PROMPT_LOGPROBS = "prompt_logprobs"
    """Log-probabilities of the tokens of a plain-text prompt, with alternatives."""
    SAMPLES = "n"
    """Several answers to one request."""
    SEED = "seed"
    """The same seed gives the same sample, another seed another one."""


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str
    """What is said."""


class CompletionRequest(BaseModel):
    """One call: a conversation, or a plain text whose own tokens are to be scored.

    Everything here decides the answer, and so is part of the key under which the reply is kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: tuple[Message, ...] = ()
    """The conversation so far; the static part first, so that prefix caches pay."""
    text: str | None = None
    """A plain text in the place of a conversation (the completions API)."""
    max_tokens: int = Field(default=512, ge=0)
    """Most tokens that the answer may have; 0, for a plain text only, where just its own tokens are wanted."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature."""
    seed: int | None = None
    """Seed of the sampling, for servers that have one."""
    sample: int = Field(default=0, ge=0)
    """Ordinal of the draw, so that several drafts of one prompt have keys of their own."""
    json_schema: dict[str, Any] | None = None
    """Schema that the answer must follow; sent where the server can be bound by it, checked always."""
    top_logprobs: int = Field(default=0, ge=0)
    """Alternatives to give with each answer token (needs ``logprobs``)."""
    prompt_logprobs: int = Field(default=0, ge=0)
    """Alternatives to give with each token of ``text`` (needs ``prompt_logprobs``)."""
    prompt_hash: str = ""
    """sha256 of the prompt file that the request was made from."""

    @model_validator(mode="after")
    def _one_kind(self) -> CompletionRequest:
        if bool(self.messages) == (self.text is not None):
            raise ValueError("a request has either messages or a text")
        if self.text is None and (self.prompt_logprobs or not self.max_tokens):
            raise ValueError("only a plain text has prompt log-probabilities, or an answer of no tokens")
        return self


class TokenLogprob(BaseModel):
    """Log-probability of one token, and of its strongest alternatives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str
    """The token's text; a token that is no whole character is given as the server writes it."""
    logprob: float
    """Natural logarithm of its probability, finite."""
    top: dict[str, float] = Field(default_factory=dict)
    """Log-probabilities of the alternatives by their text, itself among them where it is one."""


class Usage(BaseModel):
    """What a call took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_tokens: int = Field(default=0, ge=0)
    """Tokens read, cached ones among them."""
    cached_tokens: int = Field(default=0, ge=0)
    """Those of them that the server had in its prefix cache, as far as it says."""
    output_tokens: int = Field(default=0, ge=0)
    """Tokens written."""
    cost_usd: float | None = Field(default=None, ge=0)
    """Price in US dollars; None where the endpoint's price is not known."""

    def __add__(self, other: Usage) -> Usage:
        known = self.cost_usd is not None and other.cost_usd is not None
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost_usd=(self.cost_usd or 0.0) + (other.cost_usd or 0.0) if known else None,
        )


NO_USAGE = Usage(cost_usd=0.0)
"""The usage of no call at all: the neutral element of adding."""


class Completion(BaseModel):
    """One reply that has passed validation (``validation.read_reply``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    """What the model wrote."""
    finish_reason: Literal["stop", "length", "refusal"]
    """Why it stopped; ``length`` and ``refusal`` become typed failures."""
    model: str
    """Model that answered, as the endpoint names it."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One an answer token, where asked."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    """One a token of ``text``, where asked; None for the first, which nothing comes before."""
    usage: Usage = Usage()
    """What it took."""


@dataclass(slots=True)
class Journey:
    """What became of one call that goes on when its process dies: its money depends on it."""

    sent: bool = False
    """Whether the server has the call, or may have it."""
    answered: bool = False
    """Whether it has ended there, well or not."""
    earlier_at: float | None = None
    """When it was sent, seconds since 1970, where another process has sent it; None for a call of our own."""


class LLMClient(Protocol):
    """A live connection to one endpoint. It sends once: retries, limits, budget and storing are not its work."""

    async def send(self, request: CompletionRequest, deadline_s: float, *, bound: bool) -> str:
        """The raw reply as JSON text in the shape of OpenAI's API, unread.

        ``deadline_s`` is all the time that the call may take. ``bound``: whether to send ``json_schema`` to the server.
        Errors: the tree of ``call_errors.CallError``, and nothing else.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


@runtime_checkable
class OutlivingClient(Protocol):
    """A client whose calls go on when its process dies, and are found by the next one."""

    async def send_noting(self, request: CompletionRequest, deadline_s: float, journey: Journey, *, bound: bool) -> str:
        """As ``LLMClient.send``; ``journey`` says afterwards, also after an error, what became of the call."""
        ...
