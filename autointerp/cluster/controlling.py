"""Pauses, resumes and cancels runs, and has what failed tried again: a word in the store, which every worker hears within seconds."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.config import parse_config
from autointerp.config.overlay import lay_over
from autointerp.pipeline.folder import RunFolder
from autointerp.pipeline.interruption import HALTED
from autointerp.store import ChunkState, LabelStore
from autointerp.store.models import Run
from sae_core.errors import StoreError


def pause_run(store: LabelStore, run_id: str) -> None:
    """Have no chunk of a run begun, and those under way given back. Errors: StoreError for a run that has ended."""
    if not store.set_run_state(run_id, "paused", "paused by hand", unless=("cancelled", "done", "failed")):
        raise StoreError(_has_ended(store, run_id, "paused"))


def cancel_run(store: LabelStore, run_id: str) -> None:
    """End a run as it is: what is done stays, the rest is never begun. Errors: StoreError for a run that is done."""
    if not store.set_run_state(run_id, "cancelled", "cancelled by hand", unless=("done",)):
        raise StoreError(_has_ended(store, run_id, "cancelled"))


def resume_run(store: LabelStore, run_id: str, sets: Sequence[str] = ()) -> None:
    """Let a run go on that was paused, cancelled, or failed for a cause that is mended.

    ``sets`` (``key=value``) changes what does not decide results: budgets, addresses, devices. Errors: StoreError for a run that is done,
    or a setting that would make it another run.
    """
    run = store.run(run_id)
    check_submitted(run)
    if run.state == "done":
        raise StoreError(_has_ended(store, run_id, "resumed"))
    if sets:
        origin = f"the stored configuration of run {run.id}"
        data = dict(run.config)
        for item in sets:
            key, _, value = item.partition("=")
            lay_over(data, key.strip(), value.strip(), f"--set {item}")
        before, now = parse_config(run.config, origin), parse_config(data, origin, origins={})
        if now.digest != before.digest:
            raise StoreError(
                f"--set {' '.join(sets)} would make the run {run.id} another one, with other results: submit that as a run of its own; "
                "budgets, prices, addresses and devices can be changed here."
            )
        store.set_run_config(run_id, now.stored())
    store.revive(run_id, [ChunkState.FAILED])
    store.set_run_state(run_id, "running")


def retry_failed(store: LabelStore, run_id: str, folder: RunFolder) -> int:
    """Ready what a server failed and what ended its process too often, and let the run go on, unless it is paused or cancelled, which
    it stays; returns the number of chunks.

    Errors: StoreError for a run that workers do not do.
    """
    check_submitted(store.run(run_id))
    # the stages load much that a word to pause or to cancel must not wait for
    from autointerp.cluster.contexts import RETRIED
    from autointerp.pipeline.retrying import anything_to_retry, retry_failures
    from autointerp.pipeline.stages import PREPARATIONS, STAGES

    poisoned = [
        chunk for chunk in store.chunks(run_id, ChunkState.POISONED) if chunk.stage in {s.name for s in PREPARATIONS}
    ]
    count = store.revive(run_id, [ChunkState.FAILED]) + (store.revive(run_id, [ChunkState.POISONED]) if poisoned else 0)
    if anything_to_retry(store, run_id):
        store.count_event(run_id, RETRIED)
        count += retry_failures(store, run_id, STAGES, folder)
    if count:
        store.set_run_state(run_id, "running", unless=HALTED)
    return count


def check_submitted(run: Run) -> None:
    """Errors: StoreError for a run that was begun by `autointerp run`: a word in the store would have nobody go on with it."""
    if not run.submitted:
        raise StoreError(
            f"the run {run.id} in {run.folder!r} was begun by `autointerp run` and not submitted, so workers leave it alone: go on with it by "
            "that command (with --retry for what failed), or submit it with another --out."
        )


def _has_ended(store: LabelStore, run_id: str, wanted: str) -> str:
    state = store.run(run_id).state
    return f"the run {run_id} is {state} and cannot be {wanted}: `autointerp status` shows all runs and their states."
