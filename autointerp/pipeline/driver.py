"""The local driver: one process that does a run's chunks one after the other until nothing is left."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from autointerp.pipeline.atomic_files import sweep
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.execution import LEASE_S, Outcome, execute
from autointerp.pipeline.interruption import Interrupted
from autointerp.pipeline.owner import Owner
from autointerp.pipeline.reconciler import Reconciler
from autointerp.pipeline.retrying import retry_poisoned_chunks
from autointerp.pipeline.stage import Stage
from autointerp.store import MAX_ATTEMPTS, ChunkState, Lease
from autointerp.store.models import Chunk
from autointerp.store.store import StageCount
from sae_core.errors import StoreError

_WAIT_S = 1.0
"""Pause while other processes hold all that is left."""


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
        self._remarked: set[str] = set()

    def run(self, *, retry_poisoned: bool = False) -> bool:
        """Go on until the run is finished; False where there was nothing to do.

        Errors: Interrupted on SIGINT or SIGTERM, with all leases given back; StoreError where an essential chunk is
        poisoned; whatever a stage raises.
        """
        store, run_id = self._context.store, self._context.run_id
        sweep(self._context.folder.root)
        # whoever starts a run again has mended what made chunks fail
        store.revive(run_id, [ChunkState.FAILED])
        if retry_poisoned:
            retry_poisoned_chunks(store, run_id, self._stages)
        reconciler = Reconciler(self._context, self._stages)
        order = [stage.name for stage in self._stages]
        worked = False
        with self._signals():
            while True:
                progress = reconciler.release()
                self._tell()
                if progress.finished:
                    if store.run(run_id).state != "done":
                        store.set_run_state(run_id, "done")
                    return worked
                if not worked and store.run(run_id).state != "running":
                    store.set_run_state(run_id, "running")
                if progress.blocked_by is not None:
                    store.set_run_state(run_id, "failed")
                    raise StoreError(_blocked_sentence(progress.blocked_by))
                ready = store.ready(run_id, order)
                if not ready:
                    self._wait(store.chunks(run_id, ChunkState.RUNNING))
                for chunk_id in ready:
                    worked |= self._do(chunk_id)

    def _do(self, chunk_id: int) -> bool:
        if self._signal is not None:
            raise Interrupted(self._signal)
        outcome = execute(
            chunk_id,
            self._context,
            self._stages,
            on_progress=self._advance,
            stop=lambda: self._signal,
            lease_s=self._lease_s,
        )
        self._tell()
        return outcome is Outcome.DONE

    def _tell(self) -> None:
        """Show how far the run is, and what a stage that has just ended has to say."""
        counts = self._context.store.counts(self._context.run_id)
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
        if self._signal is not None:
            raise Interrupted(self._signal)
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
                raise Interrupted(number)
            self._signal = number
            self._display.note("stopping after the step in hand; press Ctrl-C again to stop at once")

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _blocked_sentence(chunk: Chunk) -> str:
    place = f"{chunk.stage} {chunk.ordinal}" + (f" of {chunk.source}" if chunk.source else "")
    if chunk.state == ChunkState.FAILED:
        return f"the chunk {place} failed in another process: {chunk.error}"
    last = f"; its last error: {chunk.error}" if chunk.error else " without leaving an error (out of memory, perhaps)"
    return (
        f"the chunk {place} has ended its process {MAX_ATTEMPTS} times{last}: mend the cause and run the same command "
        "with --retry."
    )
