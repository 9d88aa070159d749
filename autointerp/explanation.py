"""One candidate text about one latent."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from autointerp.failure import Failure


class Explanation(BaseModel):
    """One explainer's answer for one latent: a text, or a typed failure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent: int = Field(ge=0)
    """The latent that is explained."""
    explainer: str
    """Kind of the explainer that wrote it."""
    side: Literal["input", "output"] = "input"
    """Whether it says what makes the latent fire, or what the latent does; the two are never averaged."""
    text: str = ""
    """The readable label; empty only with a failure."""
    payload: dict[str, Any] = Field(default_factory=dict)
    """What a scorer needs beyond the text, as JSON (a pattern's trie, for instance)."""
    exemplar_ids: tuple[str, ...] = ()
    """Exemplars that were shown, as ``context:position``."""
    prompt_hash: str | None = None
    """sha256 of the prompt, where there is one."""
    model: str | None = None
    """The explainer's LLM, where there is one."""
    input_tokens: int = Field(default=0, ge=0)
    """LLM tokens read."""
    output_tokens: int = Field(default=0, ge=0)
    """LLM tokens written."""
    cost_usd: float = Field(default=0.0, ge=0)
    """Price of the call in US dollars."""
    failure: Failure | None = None
    """Why there is no text."""

    @model_validator(mode="after")
    def _text_or_failure(self) -> Explanation:
        if bool(self.text) == (self.failure is not None):
            raise ValueError("an explanation has either a text or a failure")
        return self
