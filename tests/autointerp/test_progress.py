"""Progress without a terminal: few lines, right figures."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from autointerp.pipeline.stages import STAGES
from autointerp.progress import PlainDisplay, display, print_timings, stage_totals
from autointerp.store import ChunkState
from autointerp.store.store import StageCount


def counts(done: int, ready: int, state: ChunkState = ChunkState.READY) -> list[StageCount]:
    return [StageCount("extract", ChunkState.DONE, 1, done, 2.0), StageCount("extract", state, 1, ready, 0.0)]


def test_units_add_up_and_a_poisoned_chunk_is_settled() -> None:
    assert stage_totals(counts(100, 50))["extract"] == (150, 100, False)
    assert stage_totals(counts(100, 50, ChunkState.POISONED))["extract"] == (150, 150, True)


def test_plain_lines_tell_rate_and_time_left_every_few_seconds() -> None:
    lines: list[str] = []
    now = [0.0]
    plain = PlainDisplay(lines.append, {"extract": "tokens"}, clock=lambda: now[0], every_s=5)
    plain.totals(counts(1000, 9000))
    for second in range(12):
        now[0] = float(second)
        plain.advance("extract", 100 * second)
    assert lines == [
        "extract: 1,500 of 10,000 tokens, 100 a second, 85 s left",
        "extract: 2,000 of 10,000 tokens, 100 a second, 80 s left",
    ]
    for _ in range(2):
        plain.totals([StageCount("extract", ChunkState.DONE, 2, 10000, 2.0)])
        plain.note("once")
    assert lines[2:] == ["extract: 10,000 tokens done in 11 s", "once"]


def test_bars_show_every_stage_on_a_terminal() -> None:
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=110, color_system=None)
    with display(console, STAGES) as shown:
        shown.totals(counts(1000, 9000))
        shown.advance("extract", 500)
        shown.advance("unplanned", 1)
        shown.note("a note")
    text = out.getvalue()
    assert "extract" in text
    assert "1500/10000 tokens" in " ".join(text.split())
    assert "a note" in text


def test_the_table_of_times_adds_up() -> None:
    out = StringIO()
    print_timings({"extract": 3.0, "probe": 1.0}, Console(file=out, width=80))
    words = out.getvalue().split()
    assert words[-2:] == ["together", "4.0"]
    assert "75%" in words
