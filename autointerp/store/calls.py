"""Calls of language models in the store: replies by key, the ledger, and a budget that is reserved before each call.

The row of ``llm_budget`` is the run's lock: whoever reserves or settles takes it first (SQLite's BEGIN IMMEDIATE holds
everything anyway), so a reservation is granted against sums that nobody else can change meanwhile.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from autointerp.store.column_types import utc_now
from autointerp.store.dialects import insert_new
from autointerp.store.models import CALL_OWNER, LLMBudget, LLMCall, LLMReservation
from autointerp.store.store import LabelStore


class Amount(NamedTuple):
    """What calls take, or may take at most."""

    tokens: int
    """Prompt and answer tokens."""
    nano_usd: int
    """1e-9 US dollars; 0 where the price is not known."""

    def plus(self, other: Amount) -> Amount:
        """The sum."""
        return Amount(self.tokens + other.tokens, self.nano_usd + other.nano_usd)

    def minus(self, other: Amount) -> Amount:
        """The difference."""
        return Amount(self.tokens - other.tokens, self.nano_usd - other.nano_usd)

    def missing_of(self, other: Amount) -> Amount:
        """By how much ``other`` is more, each of the two by itself."""
        return Amount(max(0, other.tokens - self.tokens), max(0, other.nano_usd - self.nano_usd))


NOTHING = Amount(0, 0)


class CallUnderWay(NamedTuple):
    """What is reserved for a call that outlives its process: it may be billed, and nobody has entered it."""

    amount: Amount
    begun: int
    """When it was first reserved for, microseconds since 1970; tells it from an earlier call under the same name."""
    shared: bool = False
    """Whether somebody has joined it since."""


class Cap(NamedTuple):
    """Most that a run may spend; None for no cap."""

    tokens: int | None
    nano_usd: int | None

    def holds(self, amount: Amount) -> bool:
        """Whether ``amount`` is within it."""
        return (self.tokens is None or amount.tokens <= self.tokens) and (
            self.nano_usd is None or amount.nano_usd <= self.nano_usd
        )


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A row of the ledger to be written."""

    key: str | None
    """Key of the request, None where the reply is not to be used again."""
    endpoint: str
    model: str
    purpose: str
    source: str
    latent: int | None
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nano_usd: int | None
    """None where the price is not known."""
    body: str | None
    """Raw reply; None for a call that was lost."""
    seconds: float

    @property
    def amount(self) -> Amount:
        """What the budget is charged."""
        return Amount(self.input_tokens + self.output_tokens, self.cost_nano_usd or 0)


class StoredReply(NamedTuple):
    """A reply that was paid before."""

    body: str
    cost_nano_usd: int | None


class Account(NamedTuple):
    """Where a run's budget stands."""

    spent: Amount
    """By calls that have ended."""
    reserved: Amount
    """For calls under way, and of processes that died in the middle of theirs."""


_CALL, _BUDGET, _RESERVATION = LLMCall.__table__, LLMBudget.__table__, LLMReservation.__table__
_FIND = select(_CALL.c.key, _CALL.c.reply, _CALL.c.cost_nano_usd).where(
    _CALL.c.key.in_(bindparam("keys", expanding=True))
)
_SPENT = select(_BUDGET.c.spent_tokens, _BUDGET.c.spent_nano_usd).where(_BUDGET.c.run_id == bindparam("run"))
_SPENT_LOCKED = _SPENT.with_for_update()
_RESERVED = select(
    func.coalesce(func.sum(_RESERVATION.c.tokens), 0), func.coalesce(func.sum(_RESERVATION.c.nano_usd), 0)
).where(_RESERVATION.c.run_id == bindparam("run"))
_SPEND = (
    update(LLMBudget)
    .where(_BUDGET.c.run_id == bindparam("run"))
    .values(
        spent_tokens=_BUDGET.c.spent_tokens + bindparam("tokens"),
        spent_nano_usd=_BUDGET.c.spent_nano_usd + bindparam("nano"),
    )
    .execution_options(synchronize_session=False)
)
_MINE = (_RESERVATION.c.run_id == bindparam("run"), _RESERVATION.c.owner == bindparam("process"))
_RESERVE = (
    update(LLMReservation)
    .where(*_MINE)
    .values(
        tokens=_RESERVATION.c.tokens + bindparam("more_tokens"),
        nano_usd=_RESERVATION.c.nano_usd + bindparam("more_nano"),
    )
    .execution_options(synchronize_session=False)
)
_END_GROUP = (
    update(LLMReservation)
    .where(*_MINE)
    .values(
        tokens=_RESERVATION.c.tokens + bindparam("more_tokens"),
        nano_usd=_RESERVATION.c.nano_usd + bindparam("more_nano"),
        last_group=bindparam("number"),
    )
    .execution_options(synchronize_session=False)
)
_LAST_GROUP = select(_RESERVATION.c.last_group).where(*_MINE)
_MOST_PARAMETERS = 500


def find_replies(connection: Connection, keys: Sequence[str]) -> dict[str, StoredReply]:
    """The stored replies of those of ``keys`` that have one."""
    found: dict[str, StoredReply] = {}
    for some in _in_parts(keys):
        for key, reply, cost in connection.execute(_FIND, {"keys": some}):
            found[key] = StoredReply(zlib.decompress(reply).decode("utf-8"), cost)
    return found


def has_reply(connection: Connection, run_id: str, endpoint: str) -> bool:
    """Whether an endpoint has answered a call of the run."""
    answered = select(_CALL.c.id).where(
        _CALL.c.run_id == run_id, _CALL.c.endpoint == endpoint, _CALL.c.outcome == "reply"
    )
    return connection.execute(answered.limit(1)).first() is not None


def forget_reply(connection: Connection, key: str) -> None:
    """Leave a reply in the ledger, and find it no more."""
    connection.execute(
        update(LLMCall).where(_CALL.c.key == key).values(key=None).execution_options(synchronize_session=False)
    )


def open_account(connection: Connection, run_id: str, owner: str) -> None:
    """Make the rows that spending changes, where they are not there yet."""
    budget = {"run_id": run_id, "spent_tokens": 0, "spent_nano_usd": 0}
    connection.execute(insert_new(connection, LLMBudget), budget)
    mine = {"run_id": run_id, "owner": owner, "tokens": 0, "nano_usd": 0, "last_group": 0}
    connection.execute(insert_new(connection, LLMReservation), mine)


def account(connection: Connection, run_id: str, *, lock: bool) -> Account:
    """What the run has spent and reserved; with ``lock`` nobody else changes it until this transaction ends."""
    spent = connection.execute(_SPENT_LOCKED if lock else _SPENT, {"run": run_id}).first()
    reserved = connection.execute(_RESERVED, {"run": run_id}).one()
    return Account(
        NOTHING if spent is None else Amount(int(spent[0]), int(spent[1])), Amount(int(reserved[0]), int(reserved[1]))
    )


def reserve(connection: Connection, run_id: str, owner: str, more: Amount) -> None:
    """Add to what the process has reserved (or take off, where negative). The caller has held it against the cap."""
    if more != NOTHING:
        changes = {"run": run_id, "process": owner, "more_tokens": more.tokens, "more_nano": more.nano_usd}
        connection.execute(_RESERVE, changes)


def end_group(connection: Connection, run_id: str, owner: str, number: int, held: Amount, more: Amount) -> None:
    """As ``reserve``, and note that this is the process's ``number``-th group of calls.

    ``held`` is what the process had reserved before: where its row is gone, since somebody took it for dead and entered that
    as lost, it is reserved once more, for the calls under way.
    """
    changes = {
        "run": run_id,
        "process": owner,
        "more_tokens": more.tokens,
        "more_nano": more.nano_usd,
        "number": number,
    }
    if connection.execute(_END_GROUP, changes).rowcount == 0:
        now = held.plus(more)
        row = {"run_id": run_id, "owner": owner, "tokens": now.tokens, "nano_usd": now.nano_usd, "last_group": number}
        connection.execute(insert(LLMReservation), [row])


def calls_under_way(connection: Connection, run_id: str, keys: Sequence[str]) -> dict[str, CallUnderWay]:
    """Those of the calls ``keys`` that outlive their process and were not settled."""
    found: dict[str, CallUnderWay] = {}
    for some in _in_parts([CALL_OWNER + key for key in keys]):
        rows = connection.execute(
            select(
                _RESERVATION.c.owner, _RESERVATION.c.tokens, _RESERVATION.c.nano_usd, _RESERVATION.c.last_group
            ).where(_RESERVATION.c.run_id == run_id, _RESERVATION.c.owner.in_(some))
        )
        for owner, tokens, nano, mark in rows:  # these have no groups: the column has when they began, and who waits
            call = CallUnderWay(Amount(int(tokens), int(nano)), int(mark) // 2, bool(mark % 2))
            found[owner.removeprefix(CALL_OWNER)] = call
    return found


def change_calls_under_way(
    connection: Connection, run_id: str, before: Mapping[str, CallUnderWay], after: Mapping[str, CallUnderWay]
) -> None:
    """Make what is reserved for calls that outlive their process ``after``, where it was ``before``. The caller has held it
    against the cap."""
    gone = [CALL_OWNER + key for key, call in before.items() if after.get(key) != call]
    for some in _in_parts(gone):
        connection.execute(
            delete(LLMReservation).where(_RESERVATION.c.run_id == run_id, _RESERVATION.c.owner.in_(some))
        )
    rows = [
        {
            "run_id": run_id,
            "owner": CALL_OWNER + key,
            "tokens": call.amount.tokens,
            "nano_usd": call.amount.nano_usd,
            "last_group": 2 * call.begun + call.shared,
        }
        for key, call in after.items()
        if before.get(key) != call
    ]
    if rows:
        connection.execute(insert(LLMReservation), rows)


def last_group(connection: Connection, run_id: str, owner: str) -> int | None:
    """Number of the process's last group that is committed; None where its row is gone.

    To be asked under the lock of ``account``: a transaction that still runs holds it.
    """
    return connection.execute(_LAST_GROUP, {"run": run_id, "process": owner}).scalar()


def enter(connection: Connection, run_id: str, calls: Iterable[CallRecord]) -> None:
    """Add rows to the ledger, and what they cost to what is spent."""
    now = utc_now()
    rows: list[dict[str, Any]] = []
    spent = NOTHING
    for call in sorted(calls, key=lambda call: call.key or ""):  # one order for all processes: no deadlock
        spent = spent.plus(call.amount)
        rows.append(
            {
                "key": call.key,
                "run_id": run_id,
                "endpoint": call.endpoint,
                "model": call.model,
                "purpose": call.purpose,
                "source": call.source,
                "latent": call.latent,
                "outcome": "lost" if call.body is None else "reply",
                "input_tokens": call.input_tokens,
                "cached_tokens": call.cached_tokens,
                "output_tokens": call.output_tokens,
                "cost_nano_usd": call.cost_nano_usd,
                "reply": None if call.body is None else zlib.compress(call.body.encode("utf-8", "replace"), 1),
                "seconds": call.seconds,
                "created_at": now,
            }
        )
    if rows:
        connection.execute(insert(LLMCall), rows)
        connection.execute(_SPEND, {"run": run_id, "tokens": spent.tokens, "nano": spent.nano_usd})


def settle_abandoned(
    store: LabelStore, run_id: str, is_gone: Callable[[str], bool], *, calls_too: bool = False
) -> Amount:
    """Enter what processes that are gone had reserved as lost calls, since it may have been paid; returns how much.

    What is reserved for calls that go on without their process is settled by whoever collects them, and here only where nobody will
    (``calls_too``: the run has ended).
    """
    total = NOTHING
    with store.writing() as connection:
        account(connection, run_id, lock=True)
        rows = connection.execute(
            select(_RESERVATION.c.owner, _RESERVATION.c.tokens, _RESERVATION.c.nano_usd).where(
                _RESERVATION.c.run_id == run_id
            )
        ).all()
        gone = {
            str(owner): Amount(int(tokens), int(nano_usd))
            for owner, tokens, nano_usd in rows
            if (calls_too if owner.startswith(CALL_OWNER) else is_gone(owner))
        }
        for some in _in_parts(list(gone)):
            connection.execute(
                delete(LLMReservation).where(_RESERVATION.c.run_id == run_id, _RESERVATION.c.owner.in_(some))
            )
        lost = [amount for amount in gone.values() if amount != NOTHING]
        enter(connection, run_id, [_lost_with_its_process(amount) for amount in lost])
        for amount in lost:
            total = total.plus(amount)
    return total


def drop_replies(store: LabelStore, run_id: str, older_than: datetime, ids: range | None = None) -> int:
    """Forget the raw replies of a run from before a time (those with ``ids``); the ledger stays. Returns how many.

    A request whose reply is gone is asked again if it is made again.
    """
    some = (_CALL.c.run_id == run_id, _CALL.c.reply.is_not(None), _CALL.c.created_at < older_than)
    if ids is not None:
        some = (*some, _CALL.c.id >= ids.start, _CALL.c.id < ids.stop)  # type: ignore[assignment]
    with store.writing() as connection:
        result = connection.execute(
            update(LLMCall).where(*some).values(reply=None, key=None).execution_options(synchronize_session=False)
        )
        return int(result.rowcount)


def _in_parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Databases limit the number of parameters."""
    for start in range(0, len(texts), _MOST_PARAMETERS):
        yield texts[start : start + _MOST_PARAMETERS]


def _lost_with_its_process(amount: Amount) -> CallRecord:
    return CallRecord(
        key=None,
        endpoint="",
        model="",
        purpose="abandoned",
        source="",
        latent=None,
        input_tokens=amount.tokens,
        cached_tokens=0,
        output_tokens=0,
        cost_nano_usd=amount.nano_usd,
        body=None,
        seconds=0.0,
    )
