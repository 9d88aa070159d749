"""One process of a cluster at work: it claims chunks of a queue from the store and does them, until its turn is over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from autointerp.cluster.contexts import RunContexts
from autointerp.cluster.settings import WorkerSettings
from autointerp.operations.worker_check import leave_mark
from autointerp.pipeline.execution import Outcome, execute_claimed
from autointerp.pipeline.interruption import HALTED, Halted, Stopped
from autointerp.pipeline.owner import Owner
from autointerp.pipeline.stages import PREPARATIONS, STAGES
from autointerp.store import LabelStore, Lease
from sae_core.errors import AutointerpError, BudgetError, EndpointError, StoreUnavailableError

_LOG = logging.getLogger(__name__)
_EARLY_S = 1.0
"""Rest of a stage whose next chunk reads what is not there yet."""
_UNKNOWN_S = 5.0
"""Rest of a chunk that this version does not know, in which a newer process may take it."""
_STAYS_FOR = 8
"""Chunks in a row that a process takes of the run that it has loaded, where others wait too."""
ALL_STAGES = (*PREPARATIONS, *STAGES)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn did."""

    done: int
    """Chunks."""
    more: bool
    """Whether the turn ended while there may have been more to do."""


class QueueWorker:
    """Does chunks. Of one process, used by one thread at a time."""

    def __init__(
        self, store: LabelStore, settings: WorkerSettings, drained: Callable[[], bool] = lambda: False
    ) -> None:
        """``drained``: whether the process has been asked to end; its chunk in hand is then given back."""
        self._store, self._settings, self._drained = store, settings, drained
        self._contexts = RunContexts(store, settings.runs_kept)
        self._owner = str(Owner.of_this_process())
        self._last, self._in_a_row = "", 0
        self._served: dict[str, int] = {}
        self._marked: set[str] = set()

    def close(self) -> None:
        """Close connections."""
        self._contexts.close()

    def turn(self, queue: str) -> Turn:
        """Do chunks of ``queue`` until none is ready or the turn is over.

        Errors: StoreUnavailableError; any other exception of a chunk that is nobody's fault but the code's, with the chunk given back.
        """
        ends, done = time.monotonic() + self._settings.turn_s, 0
        while not self._drained():
            prefer = self._last if queue == "gpu" and self._in_a_row < _STAYS_FOR else None
            lease = self._store.claim_next(
                queue, self._owner, self._settings.lease_s, prefer=prefer, served=self._served
            )
            if lease is None:
                return Turn(done, more=False)
            self._served[lease.run_id] = max(self._served.values(), default=0) + 1
            self._in_a_row = self._in_a_row + 1 if lease.run_id == self._last else 1
            self._last = lease.run_id
            done += self._do(lease)
            if time.monotonic() > ends:
                break
        return Turn(done, more=not self._drained())

    def _do(self, lease: Lease) -> bool:
        run_id, stage = lease.run_id, lease.key.stage
        if all(known.name != stage for known in ALL_STAGES):  # planned by a newer version: for its own processes
            _LOG.warning("the stage %r is not known to this version", stage, extra={"run": run_id, "stage": stage})
            self._store.put_back(lease, counts=False, wait_s=_UNKNOWN_S)
            return False
        try:
            runs_subject = any(known.name == stage and known.queue == "gpu" for known in ALL_STAGES)
            context = self._contexts.for_subject(run_id) if runs_subject else self._contexts.of(run_id)
            if run_id not in self._marked and context.exchange is None:
                self._marked.add(run_id)
                with suppress(OSError):  # what the chunk itself meets there says more
                    leave_mark(context.folder.root, self._owner)
            outcome = execute_claimed(
                lease,
                context,
                ALL_STAGES,
                stop=lambda: Stopped() if self._drained() else None,
                lease_s=self._settings.lease_s,
                backoff_s=self._settings.backoff_s,
            )
            if outcome is Outcome.EARLY:
                self._store.hold_back(run_id, stage, _EARLY_S)  # later ones wait with it
            _LOG.info("chunk %s", outcome.value, extra={"run": run_id, "stage": stage, "chunk": lease.chunk_id})
            return outcome is Outcome.DONE
        except Halted as halted:
            _LOG.info("run %s, chunk given back", halted.state, extra={"run": run_id, "stage": stage})
            self._contexts.drop(run_id)
        except Stopped:
            _LOG.info("draining, chunk given back", extra={"run": run_id, "stage": stage, "chunk": lease.chunk_id})
        except StoreUnavailableError:
            raise
        except (EndpointError, BudgetError) as error:
            # nothing is wrong with the chunk: the run waits until a person has mended the cause
            _LOG.warning("run paused: %s", error, extra={"run": run_id, "stage": stage})
            self._store.set_run_state(run_id, "paused", str(error), unless=[*HALTED, "done", "failed"])
            self._contexts.drop(run_id)
        except AutointerpError as error:
            _LOG.error("chunk failed: %s", error, extra={"run": run_id, "stage": stage, "chunk": lease.chunk_id})
            self._store.fail(lease, str(error))
        except Exception as error:
            # what happened before the chunk's own work had begun, e.g. to its folder; else it is given back already
            said = f"{type(error).__name__}: {error}"
            self._store.put_back(lease, error=said, counts=True, wait_s=self._settings.backoff_s)
            raise
        return False
