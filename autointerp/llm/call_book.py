"""The run's book of calls as one process keeps it: replies that are there already, reservations, settlements.

Everything goes through one group writer, and what a call needs before it is sent (is there a reply? is there money?) is one
operation, as is what it needs afterwards (keep the reply, enter the cost, settle the reservation).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from autointerp.llm.group_writer import GroupWriter
from autointerp.llm.pricing import NANO
from autointerp.store.calls import (
    NOTHING,
    Account,
    Amount,
    CallRecord,
    CallUnderWay,
    Cap,
    StoredReply,
    account,
    calls_under_way,
    change_calls_under_way,
    end_group,
    enter,
    find_replies,
    forget_reply,
    has_reply,
    last_group,
    open_account,
    settle_abandoned,
)
from autointerp.store.failures import ride_out
from autointerp.store.store import LabelStore
from sae_core.errors import BudgetError

_LOOK_S = 0.5
"""Pause between two looks at whether calls of other processes have left some of what was reserved for them."""
_PATIENCE_S = 60.0
"""Longest that the run's account may stand still while others have reserved what is missing; then there is no more budget."""
_MICRO = 10**6
_MOST_RACES = 3
"""Times that a group is done again because another process has entered the same reply at the same moment."""


@dataclass(frozen=True, slots=True)
class _Open:
    """Look a key up, or reserve."""

    key: str | None
    most: Amount
    under: str | None = None
    """Name of a call that outlives its process: reserved for under this, and not again where an earlier process did so."""


_Ending = Literal["settled", "collected", "unsent", "left"]
"""Of a call that outlives its process; ``collected``: another process has sent it, and may have settled it too; ``left``: it goes
on without us, and who asks again joins it."""


@dataclass(frozen=True, slots=True)
class _Close:
    """Settle a reservation, and enter what was paid."""

    record: CallRecord | None
    reserved: Amount
    under: str | None = None
    ending: _Ending = "settled"


@dataclass(frozen=True, slots=True)
class _Refused:
    """There is no room for the call."""

    account: Account
    closed: int
    """Calls closed so far in this process: where there are more by now, it is worth asking again."""


_Operation = _Open | _Close
_Result = StoredReply | _Refused | None


@dataclass(frozen=True, slots=True)
class _Done:
    """A group that is written, and committed perhaps."""

    results: Sequence[_Result]
    opened: int
    closed: int
    more: Amount
    """Reserved, less what was settled."""
    ended: frozenset[str]
    """Names of calls that outlive their process and have ended for us."""


class CallBook:
    """Calls of one process in one run. Of one event loop; one a run and process.

    ``owner`` is the process, unmistakably: what it reserved and never settled is found by this name.
    """

    def __init__(self, store: LabelStore, run_id: str, cap: Cap, owner: str) -> None:
        self._store, self._run_id, self._cap, self._owner = store, run_id, cap, owner
        ride_out(self._begin)
        self._writer: GroupWriter[_Operation, _Result] = GroupWriter(self._work)
        self._open_calls = 0
        self._closed_calls = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._group = 0
        self._held = NOTHING
        self._in_doubt: _Done | None = None
        self._refusal: str | None = None
        self._looks_for_others = False
        self._still: tuple[Account, float] | None = None
        self._beyond: dict[str, int] = {}
        self._joined: set[str] = set()
        self._begun: dict[str, int] = {}

    @property
    def refusal(self) -> str | None:
        """Why no call is paid any more, None while there is budget."""
        return self._refusal

    def reserves_more(self, endpoint: str, tokens: int) -> None:
        """``endpoint`` has billed so many tokens more for a call than it can take: as much is reserved on top from now on."""
        self._beyond[endpoint] = tokens

    def begun_at(self, under: str) -> float:
        """When the call that outlives its process, which ``open`` has given out last under this name, was first reserved for.

        In seconds since 1970. What was sent under the name before has been settled.
        """
        return self._begun[under] / _MICRO

    def has_answered(self, endpoint: str) -> bool:
        """Whether the run has a reply of the endpoint."""

        def ask() -> bool:
            with self._store.reading() as connection:
                return has_reply(connection, self._run_id, endpoint)

        return ride_out(ask)

    async def forget(self, key: str) -> None:
        """Take the stored reply from its key, so that it is asked for again. What it cost stays entered."""
        await asyncio.to_thread(ride_out, lambda: self._forget(key))

    def _begin(self) -> None:
        # an earlier book of this process that was not closed
        settle_abandoned(self._store, self._run_id, lambda name: name == self._owner)
        with self._store.writing() as connection:
            open_account(connection, self._run_id, self._owner)

    def _forget(self, key: str) -> None:
        with self._store.writing() as connection:
            forget_reply(connection, key)

    async def open(self, key: str | None, most: Amount, under: str | None = None) -> StoredReply | None:
        """The reply that is stored under ``key``; else None, and ``most`` is reserved, to be settled by ``close``.

        ``under``: name of a call that goes on when this process dies. What is reserved under it outlives the process too, until
        some process settles it: the call is reserved for, and entered, once.

        A call for which there is no room waits for those under way, the process's own and others', which seldom take all
        that is reserved for them. Errors: BudgetError, for it and all that come after it, where even then there is none.
        """
        while True:
            if self._refusal is not None:
                raise BudgetError(self._refusal)
            try:
                result = await self._submit_open(_Open(key, most, under))
            except BaseException:
                self._wake_next()  # who looked for all does so no more
                raise
            if not isinstance(result, _Refused):
                self._wake_next()
                return result
            if result.closed != self._closed_calls:
                continue
            if self._open_calls == 0 and not self._looks_for_others:
                if self._others_may_leave_room(result.account, most):
                    await self._look_later()
                else:
                    self._refuse(result.account, most)
                continue
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake_next()  # the turn was given in the same moment
                raise

    def _others_may_leave_room(self, standing: Account, most: Amount) -> bool:
        """Whether what is missing is reserved for calls of other processes, and the account has moved lately."""
        now = asyncio.get_running_loop().time()
        if self._still is None or self._still[0] != standing:
            self._still = standing, now
        return self._cap.holds(standing.spent.plus(most)) and now < self._still[1] + _PATIENCE_S

    async def _look_later(self) -> None:
        """One call looks for all of this process."""
        self._looks_for_others = True
        try:
            await asyncio.sleep(_LOOK_S)
        except asyncio.CancelledError:
            self._looks_for_others = False
            self._wake_next()  # the next one looks
            raise
        self._looks_for_others = False

    async def close(
        self, record: CallRecord | None, reserved: Amount, under: str | None = None, ending: _Ending = "settled"
    ) -> StoredReply | None:
        """Settle a reservation, and enter the call unless nothing was paid (None).

        Gives the stored reply where another process has been faster to enter one under the same key. Cancelling the
        caller does not undo it.
        """
        done = self.close_soon(record, reserved, under, ending)
        return await asyncio.shield(done)

    def close_soon(
        self, record: CallRecord | None, reserved: Amount, under: str | None = None, ending: _Ending = "settled"
    ) -> asyncio.Future[StoredReply | None]:
        """As ``close``, without waiting for it; for a caller that is being cancelled."""
        done = self._writer.submit(_Close(record, reserved, under, ending))
        done.add_done_callback(self._after_close)
        return cast("asyncio.Future[StoredReply | None]", done)

    async def shut(self) -> None:
        """Write what is waiting."""
        await self._writer.close()

    async def _submit_open(self, operation: _Open) -> _Result:
        done = self._writer.submit(operation)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            done.add_done_callback(lambda granted: self._give_back(granted, operation))
            raise

    def _give_back(self, granted: asyncio.Future[_Result], operation: _Open) -> None:
        if not granted.cancelled() and granted.exception() is None and granted.result() is None:
            self.close_soon(None, operation.most, operation.under, "unsent")

    def _after_close(self, done: asyncio.Future[_Result]) -> None:
        if not done.cancelled():
            done.exception()  # its caller may be gone; then nobody else would look at it
        self._wake_next()

    def _wake_next(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _refuse(self, standing: Account, most: Amount) -> None:
        used, reserved = standing.spent, standing.reserved
        elsewhere = f", {reserved.tokens:,} are reserved for calls of other processes" if reserved.tokens else ""
        if self._cap.tokens is not None and used.tokens + reserved.tokens + most.tokens > self._cap.tokens:
            self._refusal = (
                f"the budget of {self._cap.tokens:,} tokens is used up: {used.tokens:,} are spent{elsewhere} and the next call may take "
                f"{most.tokens:,}{self._said_beyond()}; raise budget.tokens and run the same command again, it goes on from here."
            )
        else:
            assert self._cap.nano_usd is not None
            elsewhere = (
                f", ${reserved.nano_usd / NANO:.4f} are reserved for calls of other processes" if elsewhere else ""
            )
            self._refusal = (
                f"the budget of ${self._cap.nano_usd / NANO:.4f} is used up: ${used.nano_usd / NANO:.4f} are spent{elsewhere} and the next "
                f"call may cost ${most.nano_usd / NANO:.4f}{self._said_beyond()}; raise budget.usd and run the same command again, it goes on from here."
            )
        while self._queue:
            self._wake_next()

    def _said_beyond(self) -> str:
        if not self._beyond:
            return ""
        said = ", ".join(f"{name!r} {tokens:,} tokens" for name, tokens in sorted(self._beyond.items()))
        return (
            f" (endpoints billed more for a call than its limits allow, and as much more is reserved for each: {said})"
        )

    # in the writer's thread

    def _work(self, operations: Sequence[_Operation]) -> Sequence[_Result]:
        """One group, through an outage of the database; nothing of it happens twice.

        A commit whose answer was lost either happened or did not: the number of the last group, which each group writes
        with the rest, tells which.
        """
        self._group += 1
        self._in_doubt = None
        return ride_out(lambda: self._raced(operations))

    def _raced(self, operations: Sequence[_Operation]) -> Sequence[_Result]:
        for race in range(_MOST_RACES):
            try:
                return self._transact(operations)
            except IntegrityError:
                if race == _MOST_RACES - 1:
                    raise
        raise AssertionError("unreachable")

    def _transact(self, operations: Sequence[_Operation]) -> Sequence[_Result]:
        with self._store.writing() as connection:
            standing = account(connection, self._run_id, lock=True)
            before = self._in_doubt
            if before is not None and last_group(connection, self._run_id, self._owner) == self._group:
                done = before
            else:
                done = self._in_doubt = self._write(connection, standing, operations)
        # only now: the counters are of what is committed
        self._held = self._held.plus(done.more)
        self._open_calls += done.opened - done.closed
        self._closed_calls += done.closed
        for under in done.ended:
            self._begun.pop(under, None)
            self._joined.discard(under)
        return done.results

    def _write(self, connection: Connection, standing: Account, operations: Sequence[_Operation]) -> _Done:
        results: list[_Result] = [None] * len(operations)
        records: list[CallRecord] = []
        released = taken = NOTHING
        opened = closed = 0
        found = find_replies(connection, [key for operation in operations if (key := _key(operation)) is not None])
        named = [operation.under for operation in operations if operation.under is not None]
        before = calls_under_way(connection, self._run_id, named) if named else {}
        under_way, grown = dict(before), NOTHING
        ended: set[str] = set()
        spent = standing.spent
        for number, operation in enumerate(operations):  # first what makes room
            if isinstance(operation, _Open):
                continue
            closed += 1
            under, record, ours = operation.under, operation.record, True
            if under is None:
                released = released.plus(operation.reserved)
            else:
                ended.add(under)
                call = under_way.get(under)
                ours = call is not None and call.begun == self._begun.get(under)
                shared = under in self._joined or (call is not None and call.shared)
                if operation.ending == "left" or (operation.ending == "unsent" and shared):
                    continue  # what another process sent may be under way still
                if ours:
                    grown = grown.minus(under_way.pop(under).amount)
                elif operation.ending == "collected" and (record is None or record.key is None):
                    continue  # who was faster has settled it
            if record is None:
                continue
            key = record.key
            if key is not None and key in found:
                results[number] = found[key]
                if not ours and record.body == found[key].body:
                    continue  # it is that very answer, and entered
                record = replace(record, key=None)  # paid twice, kept once
            elif key is not None and record.body is not None:
                found[key] = StoredReply(record.body, record.cost_nano_usd)
            spent = spent.plus(record.amount)
            records.append(record)
        for number, operation in enumerate(operations):
            if not isinstance(operation, _Open):
                continue
            if operation.key is not None and operation.key in found:
                results[number] = found[operation.key]
                continue
            under = operation.under
            there = under_way.get(under) if under is not None else None
            most = operation.most if there is None else there.amount.missing_of(operation.most)
            reserved = standing.reserved.minus(released).plus(taken).plus(grown)
            if (there is not None and most == NOTHING) or self._cap.holds(spent.plus(reserved).plus(most)):
                opened += 1
                if under is None:
                    taken = taken.plus(most)
                    continue
                if there is None:
                    self._joined.discard(under)
                    under_way[under] = CallUnderWay(most, int(time.time() * _MICRO))
                else:
                    self._joined.add(under)
                    under_way[under] = CallUnderWay(there.amount.plus(most), there.begun, shared=True)
                self._begun[under] = under_way[under].begun
                ended.discard(under)
                grown = grown.plus(most)
            else:
                results[number] = _Refused(Account(spent, reserved), self._closed_calls + closed)
        enter(connection, self._run_id, records)
        change_calls_under_way(connection, self._run_id, before, under_way)
        more = taken.minus(released)
        end_group(connection, self._run_id, self._owner, self._group, self._held, more)
        return _Done(results, opened, closed, more, frozenset(ended))


def _key(operation: _Operation) -> str | None:
    if isinstance(operation, _Open):
        return operation.key
    return None if operation.record is None else operation.record.key
