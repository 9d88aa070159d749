"""Claiming, renewing and finishing chunks: leases with a fencing number that only grows.

A claim has one winner. Every later write names the fence it was given and is refused (:class:`Fenced`) once another
process holds the chunk, so a process that slept past its lease changes nothing when it wakes (Kleppmann 2016,
"How to do distributed locking": the check must be at the resource).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import Connection, CursorResult, and_, exists, func, select, update
from sqlalchemy.orm import aliased

from autointerp.store.bulk import insert_rows
from autointerp.store.dialects import database_time
from autointerp.store.models import Base, Chunk, Run

MAX_ATTEMPTS = 5
"""Claims after which a chunk that still is not done counts as poisoned."""


class ChunkState(StrEnum):
    """Where a chunk stands."""

    WAITING = "waiting"
    """Something before it is not done."""
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """Ended with an error that the user can mend; the next start tries it anew."""
    POISONED = "poisoned"
    """Ended its process MAX_ATTEMPTS times."""


class Fenced(Exception):
    """Another process holds the chunk, or has finished it: nothing was written."""


class ChunkKey(NamedTuple):
    """A chunk's place in its run."""

    stage: str
    source: str
    """Name of the source; "" for chunks of all sources."""
    ordinal: int


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A chunk to be planned."""

    stage: str
    queue: str
    ordinal: int
    spec: dict[str, Any]
    source: str = ""
    planned_units: int = 1
    """Work in it, in the stage's unit, for progress bars."""
    state: ChunkState = ChunkState.READY
    priority: int = 0
    """Of the ready chunks of a queue those with the lowest come first."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed chunk."""

    chunk_id: int
    run_id: str
    key: ChunkKey
    fence: int
    attempts: int
    """Claims so far, this one counted."""
    planned_units: int
    spec: dict[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Successor:
    """Chunks of ``stage`` with the same source and ordinal that become ready when all of ``after`` have settled."""

    stage: str
    after: tuple[str, ...]
    settled_when_poisoned: frozenset[str]
    """Those of ``after`` that do not hold up the run when they are poisoned."""


def claim(
    connection: Connection, chunk_id: int, owner: str, lease_s: float, max_attempts: int = MAX_ATTEMPTS
) -> Lease | None:
    """Take the chunk for ``lease_s`` seconds; None where it is held, done, waiting or worn out."""
    now = database_time(connection)
    taken = _execute(
        connection,
        update(Chunk)
        .where(
            Chunk.id == chunk_id,
            Chunk.state.in_([ChunkState.READY, ChunkState.RUNNING]),
            Chunk.lease_until < now,
            Chunk.attempts < max_attempts,
        )
        .values(
            state=ChunkState.RUNNING,
            owner=owner,
            lease_until=now + lease_s,
            fence=Chunk.fence + 1,
            attempts=Chunk.attempts + 1,
        ),
    )
    if taken != 1:
        return None
    # RETURNING would need SQLite 3.35; the row is ours until this transaction ends
    row = connection.execute(
        select(
            Chunk.run_id,
            Chunk.stage,
            Chunk.source,
            Chunk.ordinal,
            Chunk.fence,
            Chunk.attempts,
            Chunk.planned_units,
            Chunk.spec,
        ).where(Chunk.id == chunk_id)
    ).one()
    return Lease(
        chunk_id,
        row.run_id,
        ChunkKey(row.stage, row.source, row.ordinal),
        row.fence,
        row.attempts,
        row.planned_units,
        row.spec,
    )


def claim_next(
    connection: Connection,
    queue: str,
    owner: str,
    lease_s: float,
    *,
    prefer: str | None = None,
    served: Mapping[str, int] = MappingProxyType({}),
    max_attempts: int = MAX_ATTEMPTS,
) -> Lease | None:
    """Take the next ready chunk of a queue for ``lease_s`` seconds; None where nothing is ready in a submitted run that is running.

    Runs take turns, so that a small run does not wait behind a huge one: the one with the fewest chunks under way in this queue
    comes first, then the one that the caller has served longest ago (``served``: a number for each run that grows with each
    service). ``prefer`` names a run that comes before all others. Processes that ask at once get different chunks (SKIP LOCKED
    on PostgreSQL; SQLite's transactions follow one another anyway).
    """
    now = database_time(connection)
    for run_id in _in_turn(connection, queue, prefer, served):
        candidate = connection.execute(
            select(Chunk.id)
            .where(
                Chunk.run_id == run_id,
                Chunk.state == ChunkState.READY,
                Chunk.queue == queue,
                Chunk.not_before <= now,
                Chunk.attempts < max_attempts,
            )
            .order_by(Chunk.priority, Chunk.ordinal, Chunk.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).scalar()
        lease = None if candidate is None else claim(connection, candidate, owner, lease_s, max_attempts)
        if lease is not None:
            return lease
    return None


def _in_turn(connection: Connection, queue: str, prefer: str | None, served: Mapping[str, int]) -> list[str]:
    """Ids of the submitted runs that are running, the one whose turn it is first."""
    under_way = (
        select(func.count())
        .where(Chunk.run_id == Run.id, Chunk.state == ChunkState.RUNNING, Chunk.queue == queue)
        .scalar_subquery()
    )
    running = select(Run.id, under_way, Run.created_at).where(Run.state == "running", Run.submitted)
    rows = connection.execute(running).all()

    def turn(row: Any) -> tuple[Any, ...]:
        return row[0] != prefer, row[1], served.get(row[0], 0), row[2], row[0]

    return [row[0] for row in sorted(rows, key=turn)]


def renew(connection: Connection, lease: Lease, lease_s: float) -> bool:
    """Prolong the lease to ``lease_s`` seconds from now; False where the chunk is no longer ours."""
    until = database_time(connection) + lease_s
    return _execute(connection, update(Chunk).where(*_ours(lease)).values(lease_until=until)) == 1


def finish(
    connection: Connection,
    lease: Lease,
    rows: Sequence[Base],
    successors: Sequence[Successor],
    units: int,
    seconds: float,
) -> None:
    """Write the chunk's rows, mark it done and make its successors ready: all in the caller's transaction.

    Errors: Fenced (the caller's transaction must roll back, which ``LabelStore.finish`` does).
    """
    done = update(Chunk).where(*_ours(lease))
    values = {
        "state": ChunkState.DONE,
        "owner": "",
        "lease_until": 0.0,
        "units": units,
        "seconds": Chunk.seconds + seconds,
        "error": None,
    }
    if _execute(connection, done.values(**values)) != 1:
        raise Fenced
    insert_rows(connection, rows)
    for successor in successors:
        release_successors(connection, lease.run_id, successor, lease.key)


def put_back(
    connection: Connection,
    lease: Lease,
    state: ChunkState,
    error: str | None,
    *,
    counts: bool,
    seconds: float = 0.0,
    wait_s: float = 0.0,
) -> None:
    """Give up a chunk that is not done; ``counts`` says whether the attempt counts towards poisoning.

    ``claim_next`` passes it over for ``wait_s`` seconds. Does nothing where another process holds the chunk.
    """
    _execute(
        connection,
        update(Chunk)
        .where(*_ours(lease))
        .values(
            state=state,
            owner="",
            lease_until=0.0,
            not_before=database_time(connection) + wait_s if wait_s else 0.0,
            error=error,
            attempts=Chunk.attempts if counts else Chunk.attempts - 1,
            seconds=Chunk.seconds + seconds,
        ),
    )


def free_dead(connection: Connection, run_id: str, is_dead: Callable[[str], bool]) -> int:
    """Take back the chunks whose owner ``is_dead``; returns how many."""
    running = connection.execute(
        select(Chunk.id, Chunk.owner, Chunk.fence).where(Chunk.run_id == run_id, Chunk.state == ChunkState.RUNNING)
    ).all()
    freed = 0
    for row in running:
        if is_dead(row.owner):
            freed += _execute(
                connection,
                update(Chunk)
                .where(Chunk.id == row.id, Chunk.fence == row.fence, Chunk.state == ChunkState.RUNNING)
                .values(state=ChunkState.READY, owner="", lease_until=0.0),
            )
    return freed


def free_expired(connection: Connection, run_id: str) -> int:
    """Take back the chunks whose lease has run out, whoever holds them; returns how many."""
    return _execute(
        connection,
        update(Chunk)
        .where(
            Chunk.run_id == run_id,
            Chunk.state == ChunkState.RUNNING,
            Chunk.lease_until < database_time(connection),
        )
        .values(state=ChunkState.READY, owner="", lease_until=0.0),
    )


def ready_by_queue(connection: Connection) -> dict[str, int]:
    """Ready chunks of the running runs by queue, those that rest not counted."""
    rows = connection.execute(
        select(Chunk.queue, func.count())
        .join(Run, Run.id == Chunk.run_id)
        .where(
            Run.state == "running",
            Run.submitted,
            Chunk.state == ChunkState.READY,
            Chunk.not_before <= database_time(connection),
        )
        .group_by(Chunk.queue)
    ).all()
    return {str(queue): int(count) for queue, count in rows}


def holds(connection: Connection, owner: str) -> bool:
    """Whether a process holds a chunk whose lease has not run out."""
    held = select(Chunk.id).where(
        Chunk.state == ChunkState.RUNNING, Chunk.owner == owner, Chunk.lease_until >= database_time(connection)
    )
    return connection.execute(held.limit(1)).first() is not None


def hold_back(connection: Connection, run_id: str, stage: str, wait_s: float) -> int:
    """Have ``claim_next`` pass over a stage's ready chunks for ``wait_s`` seconds; returns how many."""
    return _execute(
        connection,
        update(Chunk)
        .where(Chunk.run_id == run_id, Chunk.stage == stage, Chunk.state == ChunkState.READY)
        .values(not_before=database_time(connection) + wait_s),
    )


def poison(connection: Connection, run_id: str, max_attempts: int = MAX_ATTEMPTS) -> int:
    """Mark the chunks that nobody holds and that have used up their attempts; returns how many."""
    return _execute(
        connection,
        update(Chunk)
        .where(
            Chunk.run_id == run_id,
            Chunk.state.in_([ChunkState.READY, ChunkState.RUNNING]),
            Chunk.lease_until < database_time(connection),
            Chunk.attempts >= max_attempts,
        )
        .values(state=ChunkState.POISONED, owner="", lease_until=0.0),
    )


def revive(connection: Connection, run_id: str, states: Sequence[ChunkState]) -> int:
    """Make failed (or poisoned) chunks ready again with all their attempts; returns how many."""
    return _execute(
        connection,
        update(Chunk).where(Chunk.run_id == run_id, Chunk.state.in_(states)).values(state=ChunkState.READY, attempts=0),
    )


def release_successors(connection: Connection, run_id: str, successor: Successor, key: ChunkKey | None = None) -> int:
    """Make waiting chunks of ``successor.stage`` ready whose predecessors have settled; returns how many.

    ``key`` narrows it to the chunk that follows one; without it every chunk of the stage is looked at.
    """
    before = aliased(Chunk)
    open_predecessor = exists().where(
        before.run_id == run_id,
        before.stage.in_(successor.after),
        before.source == Chunk.source,
        before.ordinal == Chunk.ordinal,
        before.state != ChunkState.DONE,
        ~and_(before.state == ChunkState.POISONED, before.stage.in_(sorted(successor.settled_when_poisoned))),
    )
    conditions = [
        Chunk.run_id == run_id,
        Chunk.stage == successor.stage,
        Chunk.state == ChunkState.WAITING,
        ~open_predecessor,
    ]
    if key is not None:
        conditions += [Chunk.source == key.source, Chunk.ordinal == key.ordinal]
    return _execute(connection, update(Chunk).where(*conditions).values(state=ChunkState.READY))


def _ours(lease: Lease) -> tuple[Any, ...]:
    return Chunk.id == lease.chunk_id, Chunk.fence == lease.fence, Chunk.state == ChunkState.RUNNING


def _execute(connection: Connection, statement: Any) -> int:
    """Rows that an update changed."""
    result = connection.execute(statement.execution_options(synchronize_session=False))
    return result.rowcount if isinstance(result, CursorResult) else 0
