"""The local driver: one process that does a run's chunks one after the other until nothing is left.

Chunks of stages that mostly wait, for a disk or for language models, have threads of their own beside that.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Protocol

from autointerp.pipeline.atomic_files import sweep
from autointerp.pipeline.beside import Beside
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.execution import LEASE_S, Outcome, execute
from autointerp.pipeline.interruption import HALTED, Halted, Interrupted, Stopped
from autointerp.pipeline.owner import Owner, is_dead
from autointerp.pipeline.reconciler import Reconciler
from autointerp.pipeline.retrying import retry_failures
from autointerp.pipeline.stage import ChunkSpec, Stage
from autointerp.store import MAX_ATTEMPTS, ChunkState, Lease
from autointerp.store.calls import settle_abandoned
from autointerp.store.models import ENDED, Chunk
from autointerp.store.store import StageCount
from sae_core.errors import BudgetError, EndpointError, InputError, StoreError

_WAIT_S = 1.0
"""Pause while other processes hold all that is left."""
_LOOK_S = 0.2
"""Pause between two looks at what a thread of this process has got ready."""


class Display(Protocol):
    """What shows progress to a person."""

    def totals(self, counts: Sequence[StageCount]) -> None:
        """The run's chunks by stage and state, told after every change."""

    def advance(self, stage: str, units_in_chunk: int) -> None:
        """Units done of the chunk in hand."""

    def note(self, sentence: str) -> None:
        """Something worth a line."""


class LocalDriver:
    """Runs a configuration on this machine."""

    def __init__(
        self, context: RunContext, stages: Sequence[Stage], display: Display, *, lease_s: float = LEASE_S
    ) -> None:
        self._context = context
        self._stages = stages
        self._display = display
        self._lease_s = lease_s
        self._signal: int | None = None
        self._at_once = False
        self._ending = False
        self._worked = False
        self._beside = Beside()
        self._counts: list[StageCount] = []
        self._remarked: set[str] = set()

    def run(self, *, retry: bool = False) -> bool:
        """Go on until the run is finished; False where there was nothing to do.

        ``retry``: first give back what a server or its own chunk failed (``retrying``).
        Errors: Interrupted on SIGINT or SIGTERM, Halted where somebody pauses or cancels the run, with all leases given back; StoreError where an essential chunk is
        poisoned; whatever a stage raises.
        """
        store, run_id = self._context.store, self._context.run_id
        sweep(self._context.folder.root)
        # whoever starts a run again has mended what made chunks fail
        store.revive(run_id, [ChunkState.FAILED])
        if retry:
            self._context.asks_again = True
            retry_failures(store, run_id, self._stages, self._context.folder)
        with self._signals():
            try:
                self._work_and_end()
            except (EndpointError, BudgetError) as error:
                store.set_run_state(run_id, "paused", str(error))
                raise
            except Halted as halted:
                self._context.close()  # first, what has come is written
                if halted.state in ENDED:
                    settle_abandoned(store, run_id, is_dead, calls_too=True)
                raise
            finally:
                self._context.close()
        return self._worked

    def _work_and_end(self) -> None:
        try:
            self._until_finished(Reconciler(self._context, self._stages))
        finally:
            self._end_beside()

    def _until_finished(self, reconciler: Reconciler) -> None:
        store, run_id = self._context.store, self._context.run_id
        begun = False
        while True:
            progress = reconciler.release()
            self._tell()
            if progress.finished:
                settle_abandoned(store, run_id, is_dead, calls_too=True)
                if store.run(run_id).state != "done":
                    store.set_run_state(run_id, "done")
                return
            state = store.run_state(run_id)
            if begun and state in HALTED:
                raise Halted(run_id, str(state))
            if not begun and state != "running":
                store.set_run_state(run_id, "running")
            begun = True
            if progress.blocked_by is not None:
                self._end_beside()  # if that is what failed, it says more
                store.set_run_state(run_id, "failed", blocked_sentence(progress.blocked_by))
                raise StoreError(blocked_sentence(progress.blocked_by))
            if not self._round():
                self._wait(store.chunks(run_id, ChunkState.RUNNING))

    def _round(self) -> bool:
        """Do the ready chunks that can begin, stage after stage; False where none could."""
        place = {stage.name: number for number, stage in enumerate(self._stages)}
        ready = self._context.store.chunks(self._context.run_id, ChunkState.READY)
        begun = False
        early: set[str] = set()
        mine = [chunk for chunk in ready if chunk.stage in place]  # a submitted run that is taken over has others too
        for chunk in sorted(mine, key=lambda chunk: place[chunk.stage]):
            stage = self._stages[place[chunk.stage]]
            spec = ChunkSpec(chunk.ordinal, chunk.source, chunk.spec, chunk.planned_units)
            at_once = stage.at_once(self._context)
            if stage.name in early or self._beside.holds(chunk.id):
                continue
            if at_once and self._beside.count(stage.name) >= at_once:
                continue
            if not stage.can_begin(self._context, spec):
                early.add(stage.name)  # later ones wait with it: what is done in order costs least
                continue
            self._check_stop()
            begun = True
            if at_once:
                self._beside.start(stage.name, chunk.id, partial(self._do, chunk.id))
            else:
                self._do(chunk.id)
                self._tell()
        return begun

    def _do(self, chunk_id: int) -> None:
        outcome = execute(
            chunk_id,
            self._context,
            self._stages,
            on_progress=self._advance,
            stop=self._cause_to_stop,
            lease_s=self._lease_s,
        )
        if outcome is Outcome.DONE:
            self._worked = True

    def _cause_to_stop(self) -> Stopped | None:
        if self._signal is not None:
            return Interrupted(self._signal)
        halted = next((error for _, error in self._beside.errors if isinstance(error, Halted)), None)
        if halted is not None:
            return halted
        return Stopped() if self._ending or self._beside.errors else None

    def _check_stop(self) -> None:
        cause = self._cause_to_stop()
        if cause is not None:
            raise cause

    def _end_beside(self) -> None:
        """Stop what runs beside, and raise what it raised of itself.

        Where a stage that others read along with asks the user to change something, what was done ahead is of what will be
        another thing, and goes.
        """
        self._ending = True
        if not self._at_once:
            self._beside.wait()
        raised, self._beside.errors = self._beside.errors, []
        own = [(stage, error) for stage, error in raised if not isinstance(error, Stopped)]
        beside = {stage.name for stage in self._stages if stage.beside}
        if any(isinstance(error, InputError) and stage in beside for stage, error in own):
            self._context.store.revive(self._context.run_id, [ChunkState.DONE])
        if own:
            raise own[0][1]

    def _tell(self) -> None:
        """Show how far the run is, and what a stage that has just ended has to say."""
        counts = self._context.store.counts(self._context.run_id)
        if counts == self._counts:
            return
        self._counts = counts
        self._display.totals(counts)
        seen = {count.stage for count in counts}
        done = seen - {count.stage for count in counts if count.state != ChunkState.DONE}
        for stage in self._stages:
            if stage.name in done and stage.name not in self._remarked:
                self._remarked.add(stage.name)
                if (remark := stage.remark(self._context)) is not None:
                    self._display.note(remark)

    def _advance(self, lease: Lease, done: int) -> None:
        self._display.advance(lease.key.stage, done)

    def _wait(self, running: Sequence[Chunk]) -> None:
        self._check_stop()
        if self._beside.busy:
            self._beside.wait(_LOOK_S)
            return
        for chunk in running[:1]:
            owner = Owner.parse(chunk.owner)
            who = chunk.owner if owner is None else f"{owner.pid} on {owner.host}"
            self._display.note(f"waiting for {chunk.stage} {chunk.ordinal}, which process {who} holds")
        time.sleep(_WAIT_S)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM stops at the next report of progress, the second one at once."""

        def handle(number: int, _frame: FrameType | None) -> None:
            if self._signal is not None:
                self._at_once = True
                raise Interrupted(number)
            self._signal = number
            self._display.note(
                "stopping after the step in hand and the calls under way; press Ctrl-C again to stop at once"
            )

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def blocked_sentence(chunk: Chunk) -> str:
    """Why a run cannot go on, and what to do."""
    place = f"{chunk.stage} {chunk.ordinal}" + (f" of {chunk.source}" if chunk.source else "")
    if chunk.state == ChunkState.FAILED:
        return f"the chunk {place} failed in another process: {chunk.error}"
    last = (
        f"; its last error: {chunk.error}"
        if chunk.error
        else " without leaving an error (out of memory, perhaps, or on a cluster longer at it than AUTOINTERP_WORKER__CHUNK_LIMIT_S)"
    )
    return (
        f"the chunk {place} has ended its process {MAX_ATTEMPTS} times{last}: mend the cause and run the same command "
        "with --retry (on a cluster: autointerp retry-failed)."
    )
