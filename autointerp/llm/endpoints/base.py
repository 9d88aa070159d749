"""What every kind of endpoint is: its config as fields, which opens a client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from autointerp.llm.protocol import Capability, LLMClient, Usage


class Endpoint(BaseModel, ABC):
    """A language model that explainers and scorers can ask: one table of ``[[endpoints]]``."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    kind: str
    """Name in the config file; a concrete class narrows it to a ``Literal``."""
    name: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$")
    """Name by which explainers and scorers refer to it."""
    model: str = Field(min_length=1)
    """Model to ask, as the server names it."""
    usd_per_million_input_tokens: float | None = Field(default=None, ge=0)
    """Price of a million prompt tokens; needed for a budget in dollars (0 for a server of your own)."""
    usd_per_million_cached_tokens: float | None = Field(default=None, ge=0)
    """Price of a million prompt tokens that the server had cached; by default the full one."""
    usd_per_million_output_tokens: float | None = Field(default=None, ge=0)
    """Price of a million answer tokens."""
    thinking_tokens: int = Field(default=0, ge=0)
    """Tokens that the model may think before it answers; each chat's limit is raised by them, and they are reserved."""
    max_concurrency: int = Field(default=64, ge=1)
    """Most calls under way at once; where the server answers 429 there are fewer."""
    timeout_s: float = Field(default=120.0, gt=0)
    """All the time that one call may take."""
    give_up_s: float = Field(default=900.0, gt=0)
    """Time after which a request that was tried again and again becomes a failure of its latent."""

    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset(
        {
            "usd_per_million_input_tokens",
            "usd_per_million_cached_tokens",
            "usd_per_million_output_tokens",
            "max_concurrency",
            "timeout_s",
            "give_up_s",
            "base_url",
            "api_key_env",
        }
    )
    """Fields that do not decide an answer: a run keeps its identity when a server moves or its price changes."""

    @abstractmethod
    def open(self) -> LLMClient:
        """A client; nothing is sent. Errors: ConfigError (no key in the environment), EndpointError (a missing extra)."""

    def open_in(self, folder: Path) -> LLMClient:
        """A client that keeps what it must remember over a crash in ``folder``, which is the run's; most need nothing."""
        return self.open()

    def calls_scope(self, folder: Path) -> str:
        """Where ``open_in(folder)``'s calls outlive their process, what tells those that it finds again from all others; else "".

        Errors: StoreError where the folder cannot be written to.
        """
        return ""

    def open_for_probing(self) -> LLMClient:
        """A client of the same model at the same server, for the few calls that find out what it can do."""
        return self.open()

    @property
    def first_concurrency(self) -> int:
        """Calls under way at the start, before it is seen how the server bears them."""
        return min(self.max_concurrency, 64)

    def known_capabilities(self) -> frozenset[Capability] | None:
        """What is known without asking; None where the server must be probed."""
        return None

    def cost(self, usage: Usage) -> float | None:
        """Price of a call in US dollars, None where it is not known."""
        if self.usd_per_million_input_tokens is None or self.usd_per_million_output_tokens is None:
            return None
        cached_price = self.usd_per_million_cached_tokens
        cached_price = self.usd_per_million_input_tokens if cached_price is None else cached_price
        fresh = usage.input_tokens - usage.cached_tokens
        total = fresh * self.usd_per_million_input_tokens + usage.cached_tokens * cached_price
        return (total + usage.output_tokens * self.usd_per_million_output_tokens) / 1e6

    def identity(self) -> dict[str, Any]:
        """The fields that decide answers, as JSON."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in self.NOT_IDENTITY}
