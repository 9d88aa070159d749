"""OpenAI's Batch API: half the price for answers within a day."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from autointerp.llm.batch_journal import BatchJournal, FileJournal, MemoryJournal
from autointerp.llm.endpoints.base import Endpoint
from autointerp.llm.endpoints.openai import OpenAIClient, OpenAIEndpoint
from autointerp.llm.endpoints.request_body import request_body
from autointerp.llm.protocol import CompletionRequest, LLMClient, Usage

_HOUR_S = 3600.0


class OpenAIBatchEndpoint(OpenAIEndpoint):
    """OpenAI's server, or one like it, asked in batches: the calls of many latents go out as one file.

    A step of a run (labels, their choice, their scores, a repair) takes as long as a batch does.
    """

    kind: Literal["openai_batch"] = "openai_batch"  # type: ignore[assignment]
    """Kind of endpoint."""
    price_factor: float = Field(default=0.5, gt=0, le=1)
    """Share of the prices above that is charged in a batch."""
    window_s: float = Field(default=30.0, gt=0)
    """How long the first request waits for others to go with it, in seconds."""
    poll_s: float = Field(default=30.0, gt=0)
    """Seconds between two looks at a batch."""
    completion_window: str = "24h"
    """Time that the server is given, in its own words."""
    most_requests: int = Field(default=50_000, ge=1)
    """Most requests of a batch; OpenAI takes 50,000."""
    most_bytes: int = Field(default=190_000_000, ge=1)
    """Largest file of a batch, in bytes; OpenAI takes 200 MB."""
    max_concurrency: int = Field(default=50_000, ge=1)
    """Most requests that are waited for at once."""
    timeout_s: float = Field(default=26 * _HOUR_S, gt=0)
    """All the time that one try of a request may take, in seconds, with the wait for company."""
    give_up_s: float = Field(default=7 * 24 * _HOUR_S, gt=0)
    """Time after which a request that was in batch after batch becomes a failure of its latent, in seconds."""

    NOT_IDENTITY: ClassVar[frozenset[str]] = Endpoint.NOT_IDENTITY | {
        "price_factor",
        "window_s",
        "poll_s",
        "completion_window",
        "most_requests",
        "most_bytes",
    }
    """Fields that do not decide an answer."""

    def open(self) -> LLMClient:
        """A client that forgets its batches with the process. Errors: ConfigError where there is no key."""
        return self._client(MemoryJournal(), None)

    def open_in(self, folder: Path) -> LLMClient:
        """A client that takes over the batches of an earlier process of the same run; it notes its own in ``folder``.

        Errors: ConfigError where there is no key, StoreError where the folder cannot be written to.
        """
        return self._client(self._journal(folder), folder)

    def calls_scope(self, folder: Path) -> str:
        """Its journal's: another machine's folder has another one, and finds none of its batches."""
        return self._journal(folder).scope

    def open_for_probing(self) -> LLMClient:
        """A client that asks the same server at once and at full price: the few calls of probing need no day."""
        return OpenAIClient(self, self.key())

    @property
    def first_concurrency(self) -> int:
        """All at once: the more requests there are, the fewer batches."""
        return self.max_concurrency

    def cost(self, usage: Usage) -> float | None:
        """Price of a call in US dollars, None where it is not known."""
        full = super().cost(usage)
        return None if full is None else full * self.price_factor

    def body(self, request: CompletionRequest, bound: bool) -> tuple[str, dict[str, Any]]:
        """Route and body of one request."""
        route, body = request_body(
            request,
            self.model,
            bound=bound and self.json_mode == "schema",
            token_limit=self.token_limit(),
            prompt_logprobs=self.prompt_logprobs_api,
            thinking_tokens=self.thinking_tokens,
            extra=self.extra_body,
        )
        if bound and self.json_mode == "object" and request.json_schema is not None:
            body.setdefault("response_format", {"type": "json_object", "schema": request.json_schema})
        return route, body

    def _journal(self, folder: Path) -> FileJournal:
        return FileJournal(folder / f"batches-{self.name}.jsonl")

    def _client(self, journal: BatchJournal, folder: Path | None) -> LLMClient:
        # late: importing the openai client takes most of a second, which a run without LLMs need not wait for
        from autointerp.llm.batch_client import BatchClient
        from autointerp.llm.batch_provider import BatchProvider
        from autointerp.llm.batch_travel import BatchSettings

        key = self.key()
        provider = BatchProvider(
            self.base_url, key, f"the key in {self.api_key_env}" if key else "a request without a key"
        )
        settings = BatchSettings(
            window_s=self.window_s,
            most_requests=self.most_requests,
            most_bytes=self.most_bytes,
            poll_s=self.poll_s,
            completion_window=self.completion_window,
        )
        return BatchClient(provider, journal, settings, self.body, folder)
