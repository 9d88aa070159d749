"""``execute``: the one function that every driver calls. Claims a chunk, does it, writes it and readies what follows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from types import TracebackType

from sqlalchemy.exc import OperationalError

from autointerp.pipeline.atomic_files import disk_full
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.faults import fault_point
from autointerp.pipeline.interruption import HALTED, Halted, Stopped
from autointerp.pipeline.owner import Owner
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, NotThere, Progress, Stage
from autointerp.store import ChunkState, Fenced, LabelStore, Lease
from autointerp.store.chunks import Successor
from autointerp.store.models import Base
from sae_core.errors import AutointerpError, BudgetError, EndpointError, StoreUnavailableError

LEASE_S = 60.0
"""How long a chunk stays with a process that no longer renews its lease."""
_BEAT_S = 2.0
"""Most between two renewals, at which a process hears too that its run was paused or cancelled."""
_OUTAGE_S = 120.0
"""Longest that the end of a chunk waits for a database that is away."""
_MOST_BACKOFF_S = 300.0


class Outcome(StrEnum):
    """What became of a chunk."""

    DONE = "done"
    HELD = "held"
    """Another process holds it, or nothing is left to do on it."""
    FENCED = "fenced"
    """Another process took it over while we worked; what we had was thrown away."""
    EARLY = "early"
    """What it reads is not there; it was given back."""


class LeaseLost(BaseException):
    """Raised inside a stage when its chunk has gone to another process."""


def successors_of(stages: Sequence[Stage], name: str | None = None) -> list[Successor]:
    """The stages that follow ``name`` chunk by chunk (or any stage, without it)."""
    skippable = frozenset(stage.name for stage in stages if not stage.essential)
    return [
        Successor(stage.name, stage.after_same, skippable & frozenset(stage.after_same))
        for stage in stages
        if stage.after_same and (name is None or name in stage.after_same)
    ]


def execute(
    chunk_id: int,
    context: RunContext,
    stages: Sequence[Stage],
    *,
    on_progress: Callable[[Lease, int], None] = lambda lease, done: None,
    stop: Callable[[], Stopped | None] = lambda: None,
    lease_s: float = LEASE_S,
) -> Outcome:
    """Claim one chunk and do it, once. A chunk that another process holds or has finished does no work.

    Arguments and errors as of :func:`execute_claimed`.
    """
    lease = context.store.claim(chunk_id, str(Owner.of_this_process()), lease_s)
    if lease is None:
        return Outcome.HELD
    return execute_claimed(lease, context, stages, on_progress=on_progress, stop=stop, lease_s=lease_s)


def execute_claimed(
    lease: Lease,
    context: RunContext,
    stages: Sequence[Stage],
    *,
    on_progress: Callable[[Lease, int], None] = lambda lease, done: None,
    stop: Callable[[], Stopped | None] = lambda: None,
    lease_s: float = LEASE_S,
    backoff_s: float = 0.0,
) -> Outcome:
    """Do a chunk that this process has claimed.

    ``on_progress`` hears the chunk's units done so far. ``stop`` gives what to raise in order to stop, else None. ``backoff_s``: how
    long after its first unexplained end nobody should take the chunk; twice as long after each further one. Errors: an
    AutointerpError leaves the chunk failed, until the user has mended the cause and starts again; Stopped (Halted where the run was
    paused or cancelled), EndpointError, BudgetError and StoreUnavailableError give it back uncounted; any other exception gives it back with
    its attempt counted, and is stored with it.
    """
    store = context.store
    stage = next(stage for stage in stages if stage.name == lease.key.stage)
    fault_point(stage.name, "after_claim")
    started = time.monotonic()

    def seconds() -> float:
        return time.monotonic() - started

    with _Heartbeat(store, lease, lease_s) as heartbeat:

        def progress(done: int, /) -> None:
            if heartbeat.lost:
                raise LeaseLost
            if heartbeat.halted is not None:
                raise Halted(lease.run_id, heartbeat.halted)
            if (cause := stop()) is not None:
                raise cause
            on_progress(lease, min(done, lease.planned_units))

        spec = ChunkSpec(lease.key.ordinal, lease.key.source, lease.spec, lease.planned_units)
        try:
            with disk_full(context.folder.root):
                result = _run(stage, context, spec, progress, lease.fence)
            fault_point(stage.name, "before_write")
            units = lease.planned_units if result.units is None else result.units
            with disk_full(context.folder.root):
                _finish(store, lease, result.rows, successors_of(stages, stage.name), units, seconds())
        except (LeaseLost, Fenced):
            store.count_event(lease.run_id, "fenced")
            return Outcome.FENCED
        except NotThere:
            store.put_back(lease, counts=False, seconds=seconds())
            return Outcome.EARLY
        except (Stopped, KeyboardInterrupt):
            store.put_back(lease, counts=False, seconds=seconds())
            raise
        except StoreUnavailableError as error:
            with suppress(StoreUnavailableError):  # else the lease runs out; it may be the place for files that is away
                store.put_back(lease, error=str(error), counts=False, seconds=seconds(), wait_s=backoff_s)
            raise
        except (EndpointError, BudgetError) as error:
            # nothing is wrong with the chunk: it waits until a person has mended the cause, its replies are kept
            store.put_back(lease, error=str(error), counts=False, seconds=seconds())
            raise
        except AutointerpError as error:
            store.put_back(lease, ChunkState.FAILED, str(error), counts=True, seconds=seconds())
            raise
        except BaseException as error:
            wait_s = min(backoff_s * 2 ** (lease.attempts - 1), _MOST_BACKOFF_S)
            store.put_back(
                lease, error=f"{type(error).__name__}: {error}", counts=True, seconds=seconds(), wait_s=wait_s
            )
            error.add_note(
                f"This happened in chunk {lease.key.ordinal} of the stage {stage.name!r}, attempt {lease.attempts}; "
                "what was done before is kept, and the same command goes on from there."
            )
            raise
    fault_point(stage.name, "after_write")
    return Outcome.DONE


def _run(stage: Stage, context: RunContext, spec: ChunkSpec, progress: Progress, fence: int) -> ChunkResult:
    """The stage's work, with files fetched before and sent after it where machines share no folder. Errors: NotThere; the stage's."""
    exchange = context.exchange
    if exchange is not None:
        exchange.fetch(stage, spec)
    if not stage.can_begin(context, spec):
        raise NotThere
    result = stage.run(context, spec, progress)
    if exchange is None:
        return result
    return replace(result, rows=[*result.rows, *exchange.publish(stage, spec, fence)])


def _finish(
    store: LabelStore, lease: Lease, rows: Sequence[Base], successors: Sequence[Successor], units: int, seconds: float
) -> None:
    """``LabelStore.finish`` through an outage of the database: where the commit is in doubt, the chunk's row says what came of it.

    Errors: Fenced; StoreUnavailableError where the database stays away.
    """
    give_up = time.monotonic() + _OUTAGE_S
    wait_s, in_doubt = 0.1, False
    while True:
        try:
            if in_doubt and store.is_finished(lease):
                return  # by the commit whose answer was lost
            store.finish(lease, rows, successors, units, seconds)
            return
        except Fenced:
            if in_doubt and store.is_finished(lease):
                return  # the commit in doubt came through while this one waited for its locks
            raise
        except StoreUnavailableError:
            in_doubt = True
            if time.monotonic() > give_up:
                raise
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 5.0)


class _Heartbeat:
    """Renews a lease from a thread of its own for as long as it is open."""

    def __init__(self, store: LabelStore, lease: Lease, lease_s: float) -> None:
        self.lost = False
        self.halted: str | None = None
        """The state that the run was set to by somebody, where it goes on no more."""
        self._store, self._lease, self._lease_s = store, lease, lease_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{lease.chunk_id}", daemon=True)

    def __enter__(self) -> _Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(min(self._lease_s / 3, _BEAT_S)):
            try:
                renewed = self._store.renew(self._lease, self._lease_s)
                state = self._store.run_state(self._lease.run_id)
            except (OperationalError, AutointerpError):
                continue  # the database is busy; two more beats fit into the lease, and the fence guards the rest
            if not renewed or state is None:
                self.lost = True
                return
            if state in HALTED:
                self.halted = state
