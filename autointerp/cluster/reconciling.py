"""One look at all running runs: plan what can be planned, take back what nobody holds, end what is done, and tell idle workers.

It reads the store and nothing else, may be done by any process at any time, and may be done twice. One process at a time does it, by
a duty in the store.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress

from autointerp.cluster.broker import Broker, BrokerAwayError
from autointerp.cluster.contexts import RunContexts, asked_to_retry, settle_retries
from autointerp.cluster.preparing import plan_preparations
from autointerp.cluster.settings import WorkerSettings
from autointerp.pipeline.atomic_files import sweep
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.driver import blocked_sentence
from autointerp.pipeline.interruption import HALTED
from autointerp.pipeline.owner import Owner, is_dead
from autointerp.pipeline.reconciler import Reconciler
from autointerp.pipeline.stages import PREPARATIONS, STAGES
from autointerp.store import ChunkState, LabelStore
from autointerp.store.calls import settle_abandoned
from autointerp.store.models import ENDED
from sae_core.errors import AutointerpError, StoreUnavailableError

_LOG = logging.getLogger(__name__)
DUTY = "reconcile"
_DUTY_S = 10.0
_MOST_STUMBLES = 5
"""Looks in a row at a run that may end in an error nobody foresaw; then the run fails, and says why."""
_PREPARATIONS = {stage.name for stage in PREPARATIONS}


class ClusterReconciler:
    """Looks after all runs of a store. Of one process, used by one thread at a time."""

    def __init__(self, store: LabelStore, broker: Broker, settings: WorkerSettings) -> None:
        self._store, self._broker, self._settings = store, broker, settings
        self._owner = str(Owner.of_this_process())
        self._contexts = RunContexts(store, max(settings.runs_kept, 16))
        self._stumbles: Counter[str] = Counter()

    def close(self) -> None:
        """Close connections."""
        self._contexts.close()

    def look(self) -> bool:
        """One round; False where it is another process's turn. Errors: StoreUnavailableError."""
        # whoever dies in it is replaced after that; two at once do no harm
        if not self._store.take_duty(DUTY, self._owner, max(_DUTY_S, 5 * self._settings.reconcile_s)):
            return False
        try:
            for run_id in self._store.submitted_and_running():
                self._look_without_fail(run_id)
                # a long round must not look like a dead one
                self._store.take_duty(DUTY, self._owner, max(_DUTY_S, 5 * self._settings.reconcile_s))
            for run_id in self._store.halted_with_reservations():
                self._settle(run_id, ended=self._store.run_state(run_id) in ENDED)
            with suppress(BrokerAwayError):  # who has died is told about the next time
                self._hint()
        finally:
            self._store.end_duty(DUTY, self._owner)
        return True

    def _look_without_fail(self, run_id: str) -> None:
        """Look at one run, such that whatever it has in store for us holds up no other run."""
        try:
            self._look_at(run_id)
        except StoreUnavailableError as error:  # where it is the store itself, the next word to it says so too
            _LOG.warning("cannot look at the run now: %s", error, extra={"run": run_id})
        except Exception as error:  # noqa: BLE001 - what one run ends in must not keep all others from going on
            self._contexts.drop(run_id)
            self._stumbles[run_id] += 1
            _LOG.exception("cannot look at the run", extra={"run": run_id})
            if self._stumbles[run_id] >= _MOST_STUMBLES:
                del self._stumbles[run_id]
                self._fail(
                    run_id,
                    f"its work cannot be planned ({type(error).__name__}: {error}): mend the cause and resume the run.",
                )
        else:
            self._stumbles.pop(run_id, None)

    def _look_at(self, run_id: str) -> None:
        store = self._store
        try:
            store.free_expired(run_id)
            self._settle(run_id)
            context = self._contexts.of(run_id)
            if not self._prepared(run_id):
                return
            progress = Reconciler(context, STAGES).release()
        except StoreUnavailableError:
            raise
        except AutointerpError as error:
            _LOG.error("run failed: %s", error, extra={"run": run_id})
            store.set_run_state(run_id, "failed", str(error), unless=HALTED)
            return
        if progress.blocked_by is not None:
            self._fail(run_id, blocked_sentence(progress.blocked_by))
        elif progress.finished:
            self._end(context)

    def _prepared(self, run_id: str) -> bool:
        """Whether the run's stages can be planned: it was begun where it is worked, or what it does first is done."""
        store = self._store
        store.free_dead(run_id, is_dead)
        store.poison(run_id)
        counts = [count for count in store.counts(run_id) if count.stage in _PREPARATIONS]
        if not counts and not store.sources(run_id):
            plan_preparations(store, run_id)
            return False
        for chunk in store.chunks(run_id, ChunkState.FAILED, ChunkState.POISONED):
            if chunk.stage in _PREPARATIONS:
                self._fail(run_id, blocked_sentence(chunk))
                return False
        done = all(count.state == ChunkState.DONE for count in counts)
        if done:
            self._contexts.refresh_sources(run_id)
        return done

    def _fail(self, run_id: str, why: str) -> None:
        if self._store.set_run_state(run_id, "failed", why, unless=HALTED):
            _LOG.error("run failed: %s", why, extra={"run": run_id})

    def _end(self, context: RunContext) -> None:
        run_id = context.run_id
        asked = asked_to_retry(self._store, run_id)
        sweep(context.folder.root)
        self._settle(run_id, ended=True)
        if self._store.set_run_state(run_id, "done", unless=HALTED):
            if self._store.chunks(run_id, ChunkState.READY):  # somebody asked to retry in this moment
                self._store.set_run_state(run_id, "running", unless=HALTED)
                return
            settle_retries(self._store, run_id, asked)
            _LOG.info("run done", extra={"run": run_id})
        self._contexts.drop(run_id)

    def _settle(self, run_id: str, *, ended: bool = False) -> None:
        """Enter what processes that are gone had reserved as spent, since it may have been; of a run that has ended also what batches
        may cost that nobody collects."""
        live = {worker.owner for worker in self._store.live_workers()}
        settle_abandoned(
            self._store,
            run_id,
            lambda owner: is_dead(owner) or (owner not in live and not self._store.holds_chunk(owner)),
            calls_too=ended,
        )

    def _hint(self) -> None:
        """Have as many hints wait in each queue as there are ready chunks, but few for each live process."""
        ready = self._store.ready_by_queue()
        processes = Counter(queue for worker in self._store.live_workers() for queue in worker.queues)
        for queue, chunks in ready.items():
            wanted = min(chunks, self._settings.hints_per_process * max(1, processes[queue]))
            missing = wanted - self._broker.depth(queue)
            if missing > 0:
                self._broker.hint(queue, missing)
