"""What an LLM client takes, gives and declares. Types only: clients live in modules of their own."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field


class Capability(StrEnum):
    """What a client can do beyond plain text; what a component needs is checked before anything is spent."""

    PROMPT_LOGPROBS = "prompt_logprobs"
    LOGPROBS = "logprobs"
    JSON_SCHEMA = "json_schema"


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str
    """What is said."""


class CompletionRequest(BaseModel):
    """One call."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: tuple[Message, ...]
    """The conversation so far; the static part first, so that prefix caches pay."""
    max_tokens: int = Field(default=512, ge=1)
    """Most tokens that the answer may have."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature."""
    sample: int = Field(default=0, ge=0)
    """Ordinal of the draw, so that several drafts of one prompt have keys of their own."""
    json_schema: dict[str, Any] | None = None
    """Schema that the answer must follow (needs ``json_schema``)."""
    top_logprobs: int = Field(default=0, ge=0)
    """Alternatives to give with each answer token (needs ``logprobs``)."""
    prompt_logprobs: bool = False
    """Whether to give the log probability of each prompt token (needs ``prompt_logprobs``)."""


class TokenLogprob(BaseModel):
    """Log probability of one token, and of its strongest alternatives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str
    """The token's text."""
    logprob: float
    """Natural logarithm of its probability."""
    top: dict[str, float] = Field(default_factory=dict)
    """Alternatives by their text."""


class Usage(BaseModel):
    """What a call cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_tokens: int = Field(default=0, ge=0)
    """Tokens read."""
    output_tokens: int = Field(default=0, ge=0)
    """Tokens written."""
    cost_usd: float = Field(default=0.0, ge=0)
    """Price in US dollars."""


class Completion(BaseModel):
    """One answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    """What the model wrote."""
    finish_reason: Literal["stop", "length", "refusal"]
    """Why it stopped; ``length`` and ``refusal`` become typed failures."""
    model: str
    """Model that answered, as the endpoint names it."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One an answer token, where asked."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """One a prompt token, where asked."""
    usage: Usage = Usage()
    """What it cost."""


@runtime_checkable
class LLMClient(Protocol):
    """Anything that completes conversations."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this client can do beyond plain text."""
        ...

    def complete(self, request: CompletionRequest) -> Completion:
        """The model's answer to one request."""
        ...
