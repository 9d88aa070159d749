"""Progress of a run: bars with rate and time left on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from autointerp.pipeline.driver import Display
from autointerp.pipeline.stage import Stage
from autointerp.store import ChunkState
from autointerp.store.store import StageCount

PLAIN_EVERY_S = 5.0
"""Pause between two lines of a stage where there is no terminal."""


class StageTotals(NamedTuple):
    """Units of one stage."""

    total: int
    done: int
    settled: bool
    """No chunk is left to do."""


def stage_totals(counts: Sequence[StageCount]) -> dict[str, StageTotals]:
    """Planned and done units by stage; a poisoned chunk counts as settled."""
    totals: dict[str, StageTotals] = {}
    for stage in dict.fromkeys(count.stage for count in counts):
        own = [count for count in counts if count.stage == stage]
        settled = {ChunkState.DONE, ChunkState.POISONED}
        totals[stage] = StageTotals(
            sum(count.units for count in own),
            sum(count.units for count in own if count.state in settled),
            all(count.state in settled for count in own),
        )
    return totals


@contextmanager
def display(console: Console, stages: Sequence[Stage]) -> Iterator[Display]:
    """What shows a run's progress on a console for as long as it is open."""
    units = {stage.name: stage.unit for stage in stages}
    if not console.is_terminal:
        yield PlainDisplay(lambda line: console.print(line, markup=False, soft_wrap=True), units)
        return
    with Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        _RateColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    ) as progress:
        yield BarDisplay(progress, units)


class BarDisplay:
    """One bar a stage."""

    def __init__(self, progress: Progress, units: Mapping[str, str]) -> None:
        self._progress, self._units = progress, units
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}

    def totals(self, counts: Sequence[StageCount]) -> None:
        found = stage_totals(counts)
        for stage in self._units:
            if stage not in found:
                continue
            totals = found[stage]
            self._done[stage] = totals.done
            if stage not in self._tasks:
                # what an earlier start did is no part of this start's rate
                self._tasks[stage] = self._progress.add_task(
                    stage, total=totals.total, completed=totals.done, start=False, unit=self._units[stage]
                )
            elif self._progress.tasks[self._tasks[stage]].started:
                self._progress.update(self._tasks[stage], total=totals.total, completed=totals.done)

    def advance(self, stage: str, units_in_chunk: int) -> None:
        task = self._tasks.get(stage)
        if task is not None:
            self._progress.start_task(task)
            self._progress.update(task, completed=self._done.get(stage, 0) + units_in_chunk)

    def note(self, sentence: str) -> None:
        self._progress.console.print(Text(sentence, style="yellow"))


class PlainDisplay:
    """Lines such as ``extract 262,144 of 524,288 tokens, 21,300 a second, 12 s left``."""

    def __init__(
        self,
        write: Callable[[str], None],
        units: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        every_s: float = PLAIN_EVERY_S,
    ) -> None:
        self._write, self._units, self._clock, self._every_s = write, units, clock, every_s
        self._totals: dict[str, StageTotals] = {}
        self._first: dict[str, tuple[float, int]] = {}
        self._told: dict[str, float] = {}
        self._finished: set[str] = set()
        self._noted = ""

    def totals(self, counts: Sequence[StageCount]) -> None:
        self._totals = stage_totals(counts)
        for stage in self._units:
            totals = self._totals.get(stage)
            if totals is None or not totals.settled or stage in self._finished:
                continue
            self._finished.add(stage)
            if stage in self._first:
                seconds = self._clock() - self._first[stage][0]
                self._write(f"{stage}: {totals.total:,} {self._units[stage]} done in {seconds:,.0f} s")

    def advance(self, stage: str, units_in_chunk: int) -> None:
        now, totals = self._clock(), self._totals.get(stage)
        if totals is None:
            return
        done = totals.done + units_in_chunk
        started, before = self._first.setdefault(stage, (now, totals.done))
        if now - self._told.setdefault(stage, now) < self._every_s:
            return
        self._told[stage] = now
        rate = (done - before) / (now - started) if now > started else 0.0
        left = f", {(totals.total - done) / rate:,.0f} s left" if rate > 0 else ""
        self._write(f"{stage}: {done:,} of {totals.total:,} {self._units[stage]}, {rate:,.0f} a second{left}")

    def note(self, sentence: str) -> None:
        if sentence != self._noted:  # a line that is repeated every second says nothing new
            self._noted = sentence
            self._write(sentence)


class _RateColumn(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="dim", justify="right")


def print_timings(timings: Mapping[str, float], console: Console) -> None:
    """Where the time went, as a table."""
    total = sum(timings.values())
    table = Table(title="where the time went", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for name, seconds in timings.items():
        table.add_row(name, f"{seconds:,.1f}", f"{seconds / total:.0%}" if total else "")
    table.add_row("together", f"{total:,.1f}", "", style="bold")
    console.print(table)


class SilentDisplay:
    """Shows nothing; for tests and for workers that log elsewhere."""

    def totals(self, counts: Sequence[StageCount]) -> None:
        """Ignored."""

    def advance(self, stage: str, units_in_chunk: int) -> None:
        """Ignored."""

    def note(self, sentence: str) -> None:
        """Ignored."""
