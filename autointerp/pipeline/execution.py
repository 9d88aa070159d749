"""``execute``: the one function that every driver calls. Claims a chunk, does it, writes it and readies what follows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from types import TracebackType

from sqlalchemy.exc import OperationalError

from autointerp.pipeline.atomic_files import disk_full
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.faults import fault_point
from autointerp.pipeline.interruption import Stopped
from autointerp.pipeline.owner import Owner
from autointerp.pipeline.stage import ChunkSpec, NotThere, Stage
from autointerp.store import ChunkState, Fenced, LabelStore, Lease
from autointerp.store.chunks import Successor
from sae_core.errors import AutointerpError, BudgetError, EndpointError

LEASE_S = 60.0
"""How long a chunk stays with a process that no longer renews its lease."""


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
    """Do one chunk, once.

    ``on_progress`` hears the chunk's units done so far. ``stop`` gives what to raise in order to stop, else None. A chunk
    that another process holds or has finished does no work. Errors: an AutointerpError leaves the chunk failed, until the
    user has mended the cause and starts again; Stopped, EndpointError and BudgetError give it back uncounted; any other exception gives it back with
    its attempt counted, and is stored with it.
    """
    store = context.store
    lease = store.claim(chunk_id, str(Owner.of_this_process()), lease_s)
    if lease is None:
        return Outcome.HELD
    stage = next(stage for stage in stages if stage.name == lease.key.stage)
    fault_point(stage.name, "after_claim")
    started = time.monotonic()

    def seconds() -> float:
        return time.monotonic() - started

    with _Heartbeat(store, lease, lease_s) as heartbeat:

        def progress(done: int, /) -> None:
            if heartbeat.lost:
                raise LeaseLost
            if (cause := stop()) is not None:
                raise cause
            on_progress(lease, min(done, lease.planned_units))

        spec = ChunkSpec(lease.key.ordinal, lease.key.source, lease.spec, lease.planned_units)
        try:
            with disk_full(context.folder.root):
                result = stage.run(context, spec, progress)
            fault_point(stage.name, "before_write")
            units = lease.planned_units if result.units is None else result.units
            with disk_full(context.folder.root):
                store.finish(lease, result.rows, successors_of(stages, stage.name), units, seconds())
        except (LeaseLost, Fenced):
            return Outcome.FENCED
        except NotThere:
            store.put_back(lease, counts=False, seconds=seconds())
            return Outcome.EARLY
        except (Stopped, KeyboardInterrupt):
            store.put_back(lease, counts=False, seconds=seconds())
            raise
        except (EndpointError, BudgetError) as error:
            # nothing is wrong with the chunk: it waits until a person has mended the cause, its replies are kept
            store.put_back(lease, error=str(error), counts=False, seconds=seconds())
            raise
        except AutointerpError as error:
            store.put_back(lease, ChunkState.FAILED, str(error), counts=True, seconds=seconds())
            raise
        except BaseException as error:
            store.put_back(lease, error=f"{type(error).__name__}: {error}", counts=True, seconds=seconds())
            error.add_note(
                f"This happened in chunk {lease.key.ordinal} of the stage {stage.name!r}, attempt {lease.attempts}; "
                "what was done before is kept, and the same command goes on from there."
            )
            raise
    fault_point(stage.name, "after_write")
    return Outcome.DONE


class _Heartbeat:
    """Renews a lease from a thread of its own for as long as it is open."""

    def __init__(self, store: LabelStore, lease: Lease, lease_s: float) -> None:
        self.lost = False
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
        while not self._ended.wait(self._lease_s / 3):
            try:
                renewed = self._store.renew(self._lease, self._lease_s)
            except (OperationalError, AutointerpError):
                continue  # the database is busy; two more beats fit into the lease, and the fence guards the rest
            if not renewed:
                self.lost = True
                return
