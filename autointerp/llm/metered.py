"""A client whose calls stand in the ledger and are held to the budget, for what is sent outside of a session: probes."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from autointerp.llm.call_errors import CallError, InvalidReply, Transient
from autointerp.llm.endpoints.base import Endpoint
from autointerp.llm.pricing import billed_usage, most_amount, most_usage, nano_cost
from autointerp.llm.probing import TakesParameters
from autointerp.llm.protocol import CompletionRequest, LLMClient, Usage
from autointerp.store.calls import Amount, CallRecord


class Book(Protocol):
    """What calls are held to and entered in: a run's ``CallBook``, or ``PriorCalls`` before there is a run."""

    async def open(self, key: str | None, most: Amount, /) -> object:
        """Reserve ``most``. Errors: BudgetError."""
        ...

    async def close(self, record: CallRecord | None, reserved: Amount, /) -> object:
        """Settle a reservation, and enter the call unless nothing was paid (None)."""
        ...

    def close_soon(self, record: CallRecord | None, reserved: Amount, /) -> object:
        """As ``close``, for a caller that is being cancelled."""
        ...


def metered(client: LLMClient, endpoint: Endpoint, book: Book, purpose: str) -> MeteredClient:
    """The client with its calls entered under ``purpose``; it can send what the client can."""
    kind = MeteredParameterClient if isinstance(client, TakesParameters) else MeteredClient
    return kind(client, endpoint, book, purpose)


class MeteredClient:
    """Implements ``protocol.LLMClient`` over another client; replies are entered, but found under no key."""

    def __init__(self, client: LLMClient, endpoint: Endpoint, book: Book, purpose: str) -> None:
        self._client, self._endpoint, self._book, self._purpose = client, endpoint, book, purpose

    async def send(self, request: CompletionRequest, deadline_s: float, *, bound: bool) -> str:
        """See ``LLMClient.send``. Errors: CallError, and BudgetError where there is no room for the call."""
        return await self._paid(
            most_usage(request, self._endpoint), lambda: self._client.send(request, deadline_s, bound=bound)
        )

    async def _paid(self, most: Usage, send: Callable[[], Awaitable[str]]) -> str:
        amount = most_amount(most, self._endpoint)
        await self._book.open(None, amount)
        begun_s = time.monotonic()
        try:
            body = await send()
        except CallError as error:
            paid = isinstance(error, InvalidReply) or (isinstance(error, Transient) and error.maybe_paid)
            await self._book.close(self._record(most, None, begun_s) if paid else None, amount)
            raise
        except BaseException:
            self._book.close_soon(self._record(most, None, begun_s), amount)
            raise
        await self._book.close(self._record(billed_usage(body) or most, body, begun_s), amount)
        return body

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _record(self, usage: Usage, body: str | None, begun_s: float) -> CallRecord:
        return CallRecord(
            key=None,
            endpoint=self._endpoint.name,
            model=self._endpoint.model,
            purpose=self._purpose,
            source="",
            latent=None,
            input_tokens=usage.input_tokens,
            cached_tokens=0,
            output_tokens=usage.output_tokens,
            cost_nano_usd=nano_cost(usage, self._endpoint),
            body=body,
            seconds=time.monotonic() - begun_s,
        )


class MeteredParameterClient(MeteredClient):
    """Implements ``probing.TakesParameters`` too."""

    async def send_with(
        self, request: CompletionRequest, deadline_s: float, extra: Mapping[str, Any], *, bound: bool = False
    ) -> str:
        """See ``TakesParameters.send_with``."""
        client = self._client
        assert isinstance(client, TakesParameters)
        most = most_usage(request, self._endpoint)
        samples = extra.get("n", 1)
        most = most.model_copy(update={"output_tokens": most.output_tokens * samples})
        return await self._paid(most, lambda: client.send_with(request, deadline_s, extra, bound=bound))
