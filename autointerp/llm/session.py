"""The way of a request: what is stored is not asked again, what is asked is paid for first, kept, and tried again.

In this order: look the key up and reserve the most that the call can cost (one commit); wait for a place among the calls
under way; send; give the place back; keep the raw reply, enter the cost and settle the reservation (one commit). So a
kill costs the calls under way and those replies that wait for their commit, together at most ``MOST_UNSAVED`` times the
endpoint's ``max_concurrency``; and no commit holds up a call, as long as the database keeps up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from autointerp.llm.asking import LLM
from autointerp.llm.call_book import CallBook
from autointerp.llm.call_errors import CallError, InvalidReply, NoReply, RateLimited, Transient
from autointerp.llm.concurrency import AdaptiveLimit, Place
from autointerp.llm.endpoints.base import Endpoint
from autointerp.llm.keys import key_base, reply_key
from autointerp.llm.pricing import (
    NANO,
    BudgetCap,
    beyond,
    billed_usage,
    cap_of,
    check_price,
    largest,
    most_amount,
    most_usage,
    nano_cost,
)
from autointerp.llm.protocol import Capability, Completion, CompletionRequest, Journey, LLMClient, Usage
from autointerp.llm.retrying import Tries
from autointerp.llm.server_line import ServerLine
from autointerp.llm.validation import read_reply
from autointerp.pipeline.faults import fault_point
from autointerp.store.calls import Amount, CallRecord, StoredReply
from autointerp.store.store import LabelStore
from sae_core.errors import EndpointError
from sae_core.hashing import seed_for

MOST_UNSAVED = 2
"""Calls that may be begun and not stored, as a multiple of the calls that may be at the server: what a kill can cost. With once as many
the server would wait for commits; without a limit a database that is slow lets replies pile up."""


class CallPlace(NamedTuple):
    """What a call is for: where it stands in the ledger."""

    source: str
    latent: int | None
    purpose: str


@dataclass(slots=True)
class SessionCounts:
    """What a session has done so far."""

    calls: int = 0
    """Sent to the server, every try counted."""
    replayed: int = 0
    """Requests whose reply was stored."""
    joined: int = 0
    """Requests that were asked for while an equal one was under way."""
    limited: int = 0
    """Calls answered 429."""
    retried: int = 0
    """Calls made again for another reason."""
    lost: int = 0
    """Calls that were, or may have been, paid and left no reply."""
    failed: dict[str, int] = field(default_factory=dict)
    """Requests that failed for good, by kind of failure."""


class LLMSession:
    """One endpoint in one run. Belongs to one event loop; any number of tasks may use it at once."""

    def __init__(
        self,
        endpoint: Endpoint,
        client: LLMClient,
        capabilities: frozenset[Capability],
        store: LabelStore,
        run_id: str,
        scope: str,
        budget: BudgetCap,
        owner: str,
        *,
        book: CallBook | None = None,
        asks_again: bool = False,
        outlives: str = "",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``book`` is what the sessions of a run share. ``asks_again``: whether a reply that was kept though it cannot be used
        is asked for again. ``outlives``: where calls outlive their process, a name for all those that ``client`` finds again.

        Errors: ConfigError, a budget in dollars without a price.
        """
        check_price(endpoint, budget)
        self.endpoint = endpoint
        self.capabilities = capabilities
        self.counts = SessionCounts()
        self._own_book = book is None
        self._book = book or CallBook(store, run_id, cap_of(budget), owner)
        self._rng = np.random.default_rng(seed_for(0, "retry waits", endpoint.name, owner))
        self._line = ServerLine(
            endpoint, client, self._rng, clock, sleep, was_answered=lambda: self._book.has_answered(endpoint.name)
        )
        self._unsaved = asyncio.Semaphore(MOST_UNSAVED * endpoint.max_concurrency)
        self._key_base = key_base(endpoint, scope)
        self._clock = clock
        self._flights: dict[str, asyncio.Future[Completion | Exception | None]] = {}
        self._beyond = Usage()
        self._asks_again = asks_again
        self._outlives = outlives
        self._asked_again: set[str] = set()

    @property
    def limit(self) -> AdaptiveLimit:
        """How many calls may be under way, and how that came about."""
        return self._line.limit

    def bound(self, source: str, latent: int | None, purpose: str) -> LLM:
        """The endpoint for calls that stand in the ledger under these."""
        from autointerp.llm.bound_llm import BoundLLM

        return BoundLLM(self, CallPlace(source, latent, purpose))

    async def complete(self, request: CompletionRequest, place: CallPlace) -> Completion:
        """The reply to a request, stored or new; equal requests at the same time are one.

        Errors: CallError (this request has failed for good), EndpointError and BudgetError (no request will do).
        """
        key = reply_key(request, self._key_base)
        while (under_way := self._flights.get(key)) is not None:
            self.counts.joined += 1
            outcome = await asyncio.shield(under_way)
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is not None:
                return outcome
            # whoever asked was cancelled; now it is our turn
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        outcome = None
        try:
            outcome = await self._until_settled(key, request, place)
        except Exception as error:
            outcome = error
            raise
        finally:
            del self._flights[key]
            flight.set_result(outcome)
        return outcome

    async def drain(self) -> None:
        """Send nothing more, and return when the calls under way have ended; who waits to send waits until it is cancelled."""
        await self._line.drain()

    async def close(self) -> None:
        """Write what is to be written, and close the connections."""
        if self._own_book:
            await self._book.shut()
        await self._line.close()

    async def _until_settled(self, key: str, request: CompletionRequest, place: CallPlace) -> Completion:
        """Try until there is a reply or the request has failed for good."""
        tries = Tries(
            self.endpoint.give_up_s, self._rng, logprobs=bool(request.top_logprobs or request.prompt_logprobs)
        )
        while True:
            self._line.check()
            try:
                return await self._stored_or_paid(key, request, place, tries)
            except CallError as error:
                self._line.check()  # where that is the end for all, it is no failure of this request
                wait_s = tries.next_wait(error)
                if tries.failures > 1 or wait_s is None:
                    self._line.failed(key, error, final=wait_s is None)
                if wait_s is None:
                    self.counts.failed[error.kind] = self.counts.failed.get(error.kind, 0) + 1
                    raise
                if isinstance(error, RateLimited):
                    self.counts.limited += 1
                    self._line.hold_back(wait_s)
                else:
                    self.counts.retried += 1
                    await self._line.pause(wait_s)

    async def _stored_or_paid(self, key: str, request: CompletionRequest, place: CallPlace, tries: Tries) -> Completion:
        """The stored reply, else that of one call."""
        admitted = await self._admitted(key, request)
        if isinstance(admitted, StoredReply):
            try:
                return self._replayed(admitted, request)
            except InvalidReply:
                if not self._asks_again or key in self._asked_again:
                    tries.hopeless = True  # as it was when it was paid
                    raise
            self._asked_again.add(key)
            await self._book.forget(key)
            return await self._stored_or_paid(key, request, place, tries)
        try:
            return await self._paid(key, request, place, tries, *admitted)
        finally:
            self._unsaved.release()

    async def _paid(
        self,
        key: str,
        request: CompletionRequest,
        place: CallPlace,
        tries: Tries,
        slot: Place,
        most: Usage,
        amount: Amount,
    ) -> Completion:
        """The reply of one call, kept."""
        under = self._under(key)
        journey = None if under is None else Journey()
        begun_s = self._clock()
        self.counts.calls += 1
        try:
            bound = request.json_schema is not None and Capability.JSON_SCHEMA in self.capabilities
            body = await self._line.send(slot, request, bound=bound, key=key, journey=journey)
        except (CallError, EndpointError) as error:
            seconds = self._clock() - begun_s
            tries.elapsed_s += seconds
            ending = self._ending(under, journey, error)
            settles = ending in ("settled", "collected")
            lost = self._lost_to(error, place, most, seconds) if settles else None
            await self._book.close(lost, amount, under, ending)
            raise
        except BaseException:  # cut off, in the middle of a call that may be paid
            if journey is not None:  # whoever collects it enters what it cost
                self._book.close_soon(None, amount, under, "left" if journey.sent else "unsent")
            else:
                self._book.close_soon(self._lost(place, most, self._clock() - begun_s), amount)
            raise
        seconds = self._clock() - begun_s
        fault_point("llm", "after_reply")
        completion: Completion | None = None
        invalid: InvalidReply | None = None
        try:
            # looked at before it is kept, because only the reply says what it cost; it is kept whatever is in it
            completion = read_reply(body, request)
            usage = completion.usage
        except InvalidReply as error:
            invalid, usage = error, billed_usage(body) or most
            tries.elapsed_s += seconds
        except Exception:  # a mistake of ours; the reply can be read when it is mended
            self._book.close_soon(self._record(key, place, most, body, seconds), amount, under)
            raise
        self._billed(request, usage)
        # what is invalid for the last time is kept under its key: a run that goes on fails there in the same way
        kept = invalid is None or tries.is_last(invalid)
        record = self._record(key if kept else None, place, usage, body, seconds)
        ending = self._ending(under, journey, None if kept else invalid)
        earlier = await self._book.close(record if ending != "unsent" else None, amount, under, ending)
        fault_point("llm", "after_save")
        if earlier is not None:  # another process was faster: both go on with the same reply
            return _with_cost(read_reply(earlier.body, request), earlier.cost_nano_usd)
        if completion is None:
            assert invalid is not None
            raise invalid
        return _with_cost(completion, record.cost_nano_usd)

    async def _admitted(self, key: str, request: CompletionRequest) -> StoredReply | tuple[Place, Usage, Amount]:
        """The stored reply; else a place in which to send at once, and the most that the call may take, which is reserved.

        With a place comes one of ``_unsaved``.
        """
        under = self._under(key)
        while True:
            most = self._most(request)
            amount = most_amount(most, self.endpoint)
            stored = await self._book.open(key, amount, under)
            if stored is not None:
                return stored
            try:
                slot = await self._admitted_to_line()
            except EndpointError:
                await self._book.close(None, amount, under, "unsent")
                raise
            except BaseException:  # nothing was sent
                self._book.close_soon(None, amount, under, "unsent")
                raise
            if self._most(request) == most:
                return slot, most, amount
            self._unsaved.release()
            self._line.give_up()  # while it waited, another call was billed more than was thought possible
            await self._book.close(None, amount, under, "unsent")

    async def _admitted_to_line(self) -> Place:
        await self._unsaved.acquire()
        try:
            return await self._line.admit()
        except BaseException:
            self._unsaved.release()
            raise

    def _replayed(self, stored: StoredReply, request: CompletionRequest) -> Completion:
        self.counts.replayed += 1
        completion = read_reply(stored.body, request)
        self._billed(request, completion.usage)
        return _with_cost(completion, stored.cost_nano_usd)

    def _most(self, request: CompletionRequest) -> Usage:
        """The most that a call can take: by its limits, and what this server was seen to bill beyond them."""
        return most_usage(request, self.endpoint) + self._beyond

    def _billed(self, request: CompletionRequest, billed: Usage) -> None:
        """Learn from a bill that is above the most that the call can take by its limits."""
        more = largest(self._beyond, beyond(most_usage(request, self.endpoint), billed))
        if more != self._beyond:
            self._beyond = more
            self._book.reserves_more(self.endpoint.name, self._beyond.input_tokens + self._beyond.output_tokens)

    def _under(self, key: str) -> str | None:
        """Name of a call that outlives this process, in the book."""
        return f"{self._outlives}/{key}" if self._outlives else None

    def _ending(
        self, under: str | None, journey: Journey | None, error: CallError | EndpointError | None
    ) -> Literal["settled", "collected", "unsent", "left"]:
        """What the book is told of a call that ended so for us: it may be under way all the same, to be joined by whoever asks again."""
        if under is None or journey is None:
            return "settled"
        if not journey.sent:
            return "unsent"
        if not journey.answered:
            return "left"
        if journey.earlier_at is None:
            return "settled"
        # a process that was killed before it asked again has entered what is of no use, and its batch is found again
        entered = error is not None and journey.earlier_at < self._book.begun_at(under)
        return "unsent" if entered else "collected"

    def _lost_to(self, error: Exception, place: CallPlace, most: Usage, seconds: float) -> CallRecord | None:
        """The ledger's row of a call that ended so, None where nothing was paid."""
        if isinstance(error, NoReply) and (billed := billed_usage(error.body)) is not None:
            return self._lost(place, billed, seconds)
        paid = isinstance(error, InvalidReply) or (isinstance(error, Transient) and error.maybe_paid)
        return self._lost(place, most, seconds) if paid else None

    def _record(self, key: str | None, place: CallPlace, usage: Usage, body: str | None, seconds: float) -> CallRecord:
        return CallRecord(
            key=key,
            endpoint=self.endpoint.name,
            model=self.endpoint.model,
            purpose=place.purpose,
            source=place.source,
            latent=place.latent,
            input_tokens=usage.input_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
            cost_nano_usd=nano_cost(usage, self.endpoint),
            body=body,
            seconds=seconds,
        )

    def _lost(self, place: CallPlace, most: Usage, seconds: float) -> CallRecord:
        self.counts.lost += 1
        return self._record(None, place, most, None, seconds)


def _with_cost(completion: Completion, cost_nano_usd: int | None) -> Completion:
    """The completion with its price: the one that the ledger has, so that a run that goes on sees the same."""
    cost_usd = None if cost_nano_usd is None else cost_nano_usd / NANO
    return completion.model_copy(update={"usage": completion.usage.model_copy(update={"cost_usd": cost_usd})})
