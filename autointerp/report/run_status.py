"""How far a run is: stages, rates, time left, spend against the budget, failures, and who works on it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autointerp.report.spend_line import spend_line
from autointerp.store import ChunkState, LabelStore
from autointerp.store.calls import account
from autointerp.store.ledger import spend_by_purpose
from autointerp.store.presence import LiveWorker

if TYPE_CHECKING:
    from rich.console import Console

_LOOK_S = 2.0
_ENDED = ("done", "failed", "cancelled")
NANO = 10**9


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One stage of a run. Units are the stage's own: tokens, latents, ..."""

    name: str
    done: int
    """Chunks."""
    total: int
    running: int
    poisoned: int
    """Chunks that failed, or ended their process too often."""
    units_done: int
    units: int
    seconds: float
    """Time spent on its chunks, all processes together."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One look at a run."""

    run_id: str
    name: str
    state: str
    note: str | None
    folder: str
    begun: str
    stages: list[StageStatus]
    workers: list[LiveWorker]
    spent_tokens: int
    spent_nano_usd: int
    reserved_tokens: int
    """Of calls under way."""
    budget: dict[str, Any]
    events: dict[str, int]
    errors: list[str]
    timings: dict[str, float]
    spend: list[dict[str, Any]] = field(default_factory=list)
    seen_at: float = field(default_factory=time.monotonic)


def read_status(store: LabelStore, run_id: str, *, by_purpose: bool = True) -> RunStatus:
    """Look at a run once; ``by_purpose`` reads every call of it to say what each component spent. Errors: StoreError."""
    run = store.run(run_id)
    counts = store.counts(run_id)
    timings = store.timings(run_id)
    stages = []
    for name in [name for name in timings if any(count.stage == name for count in counts)]:
        mine = [count for count in counts if count.stage == name]
        of = {count.state: count for count in mine}
        stages.append(
            StageStatus(
                name,
                done=of[ChunkState.DONE].chunks if ChunkState.DONE in of else 0,
                total=sum(count.chunks for count in mine),
                running=of[ChunkState.RUNNING].chunks if ChunkState.RUNNING in of else 0,
                poisoned=sum(of[s].chunks for s in (ChunkState.POISONED, ChunkState.FAILED) if s in of),
                units_done=of[ChunkState.DONE].units if ChunkState.DONE in of else 0,
                units=sum(count.units for count in mine),
                seconds=sum(count.seconds for count in mine),
            )
        )
    with store.reading() as connection:
        standing = account(connection, run_id, lock=False)
    failed = store.chunks(run_id, ChunkState.FAILED, ChunkState.POISONED)
    errors = [f"{chunk.stage} {chunk.ordinal}: {chunk.error}" for chunk in failed if chunk.error]
    errors += store.errors_of_ready(run_id)
    return RunStatus(
        run.id,
        run.name,
        run.state,
        run.state_note,
        run.folder,
        f"{run.created_at:%Y-%m-%d %H:%M} UTC",
        stages,
        store.live_workers(),
        standing.spent.tokens,
        standing.spent.nano_usd,
        standing.reserved.tokens,
        run.config.get("budget") or {},
        store.event_counts(run_id),
        errors[:20],
        timings,
        [row._asdict() for row in spend_by_purpose(store, run_id).values()] if by_purpose else [],
    )


def status_json(status: RunStatus) -> dict[str, Any]:
    """The same as a JSON value."""
    from dataclasses import asdict

    found = asdict(status)
    del found["seen_at"]
    found["workers"] = [worker._asdict() for worker in status.workers]
    return found


def print_status(status: RunStatus, console: Console) -> None:
    """Print one look."""
    from autointerp.progress import print_timings

    console.print(_head(status), markup=False)
    console.print(_table(status, None))
    for error in status.errors:
        console.print(error, markup=False)
    print_timings(status.timings, console)
    if status.spend:
        console.print(spend_line(status.spend, 0))
    for line in _further(status):
        console.print(line, markup=False)


def follow_runs(runs: Sequence[tuple[LabelStore, str]], console: Console) -> None:
    """Show runs until all have ended, with what is done a second and how long the rest will take."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    # every two seconds, so not all calls that have been made
    first = {run_id: read_status(store, run_id, by_purpose=False) for store, run_id in runs}
    with Live(console=console, auto_refresh=False) as live:
        while True:
            looks = [read_status(store, run_id, by_purpose=False) for store, run_id in runs]
            parts: list[Any] = []
            for look in looks:
                parts += [Text(_head(look)), _table(look, first[look.run_id])]
                parts += [Text(line) for line in [*look.errors[:3], *_further(look)]]
            live.update(Group(*parts), refresh=True)
            if all(look.state in _ENDED for look in looks):
                return
            time.sleep(_LOOK_S)


def _head(status: RunStatus) -> str:
    why = f" ({status.note})" if status.note else ""
    return f"run {status.run_id} ({status.name}): {status.state}{why}, begun {status.begun}, in {status.folder}"


def _table(status: RunStatus, first: RunStatus | None) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    headings = ["stage", "done", "of", "running", "poisoned"] + (["per second", "left"] if first is not None else [])
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in status.stages:
        cells = [stage.name, *(f"{number:,}" for number in (stage.done, stage.total, stage.running, stage.poisoned))]
        table.add_row(*cells, *(_rate(stage, status, first) if first is not None else ()))
    return table


def _rate(stage: StageStatus, status: RunStatus, first: RunStatus) -> tuple[str, str]:
    """Units a second since the first look, and the time that the rest takes at that rate."""
    before = next((one.units_done for one in first.stages if one.name == stage.name), 0)
    since = status.seen_at - first.seen_at
    rate = (stage.units_done - before) / since if since > 0 else 0.0
    if rate <= 0 or stage.units_done == stage.units:
        return "", ""
    left = (stage.units - stage.units_done) / rate
    hours, minutes = divmod(round(left / 60), 60)
    return (
        f"{rate:,.1f}",
        f"{hours} h {minutes:02d} min" if hours else f"{left:.0f} s" if left < 100 else f"{minutes} min",
    )


def _further(status: RunStatus) -> list[str]:
    """Spend against the budget, who works, and what went wrong and was mended."""
    lines = []
    usd, tokens = status.budget.get("usd"), status.budget.get("tokens")
    if usd:
        lines.append(f"spent ${status.spent_nano_usd / NANO:,.4f} of ${usd:,.2f}")
    if tokens:
        lines.append(f"spent {status.spent_tokens:,} of {tokens:,} tokens, {status.reserved_tokens:,} reserved")
    if status.workers:
        by_queue: dict[str, int] = {}
        for worker in status.workers:
            for queue in worker.queues:
                by_queue[queue] = by_queue.get(queue, 0) + 1
        lines.append("processes: " + ", ".join(f"{queue} {count}" for queue, count in sorted(by_queue.items())))
    happened = {name: count for name, count in status.events.items() if name not in ("retried", "retries_done")}
    if happened:
        lines.append("mended: " + ", ".join(f"{name} {count}" for name, count in sorted(happened.items())))
    return lines
