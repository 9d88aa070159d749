"""A week of nights by real workers, beat, broker and database; and one process that has all the queues of two runs to itself."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import func, select

from autointerp.llm.server import Reply, RunningServer
from autointerp.nightly.book import nights, set_schedule
from autointerp.nightly.schedule import load_schedule
from autointerp.store.models import LLMCall
from sae_core.hashing import seed_for
from tests import invariants
from tests.chaos.conftest import Experiment, OpenCluster
from tests.cluster_world import Worker, wait_until
from tests.made_up_world import MadeUpAnswerer

pytestmark = pytest.mark.chaos
LATENTS, ANCHORS, BUDGET_USD = 40, 20, 0.06
SUNDAY = datetime(2026, 1, 4, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


class _Erring(MadeUpAnswerer):
    """Says the contrary of the truth of some windows, of others every night."""

    rate, night = 0.03, 0

    def answer(self, request: dict[str, Any]) -> Reply:
        """As of MadeUpAnswerer."""
        reply = super().answer(request)
        try:
            said = json.loads(reply.text)["matches"]
        except (ValueError, KeyError, TypeError):
            return reply
        asked = str(request["messages"][-1]["content"])
        wrong = [seed_for(self.night, asked, number) % 1000 < 1000 * self.rate for number in range(len(said))]
        return Reply(json.dumps({"matches": [int(bool(one) != other) for one, other in zip(said, wrong, strict=True)]}))


def _schedule(folder: Path, labelled: str, url: str) -> Path:
    path = folder / "schedule.toml"
    path.write_text(f"""
name = "week"
run = "{labelled}"
at = "02:00"
timezone = "UTC"
window_h = 4.0
anchors = {ANCHORS}
chunk_latents = 8
[budget]
usd = {BUDGET_USD}
[[scorers]]
kind = "detection"
firing = 6
silent = 6
per_call = 12
neighbour_share = 0.0
[[endpoints]]
kind = "openai"
base_url = "{url}"
model = "test"
api_key_env = "CHAOS_KEY"
usd_per_million_input_tokens = 1.0
usd_per_million_output_tokens = 2.0
""")
    return path


def test_a_week_of_nights_by_workers_and_beats(cluster: OpenCluster, saw: Experiment) -> None:
    """Seven nights by a clock that is set forward; the judge gets worse on the fifth, for good."""
    world = cluster(LATENTS)
    clock = world.folder / "clock"
    clock.write_text(SUNDAY.isoformat())
    told = {"CHAOS_CLOCK": str(clock)}
    judge = _Erring()
    with RunningServer(judge) as server:
        world.worker(hook="moved_clock", more=told)
        labelled = world.submit(world.config())
        world.wait(labelled)
        for number in range(2):
            arguments = ["-A", "workers.app", "beat", "-s", str(world.folder / f"beat-{number}")]
            told["TEST_HOOK"] = "tests.chaos.hooks:moved_clock"
            world.workers.append(Worker(arguments, world.environment(told)))
        set_schedule(world.store, load_schedule(_schedule(world.folder, labelled, server.url)), SUNDAY)
        schedule = load_schedule(world.folder / "schedule.toml")
        begun = time.monotonic()
        for number in range(1, 8):
            judge.night, judge.rate = number, 0.03 if number < 5 else 0.4
            asked = len(server.calls)
            now = SUNDAY + number * DAY
            written = world.folder / "clock.new"
            written.write_text((now - timedelta(hours=9, minutes=30)).isoformat())  # 02:30
            written.replace(clock)

            def ended(date: str = now.date().isoformat()) -> bool:
                newest = nights(world.store, "week", newest=1)
                return bool(newest) and newest[0].date == date and bool(newest[0].counts.get("snapshot"))

            wait_until(ended, 120, f"night {number} is settled and has its snapshot", world)
            assert invariants.few_calls_twice(server.calls[asked:], 0) == 0
        seconds = time.monotonic() - begun
        found = list(reversed(nights(world.store, "week")))
    dates = [(SUNDAY + number * DAY).date().isoformat() for number in range(1, 8)]
    assert [night.date for night in found] == dates
    assert [night.date for night in found if night.report["drift"]] == [dates[4]]
    runs = {run.id: run.state for run in world.store.runs() if run.id != labelled}
    assert runs == {f"night-week-{date.replace('-', '')}": "done" for date in dates}
    spent = []
    for night in found:
        with world.store.reading() as connection:
            nano = connection.execute(
                select(func.sum(LLMCall.cost_nano_usd)).where(LLMCall.run_id == night.run_id)
            ).scalar_one()
        spent.append(int(nano) / 1e9)
        assert 0 < spent[-1] <= BUDGET_USD, night.date
        assert ANCHORS <= night.counts["scored"] == night.counts["planned"] < LATENTS, night.counts
        invariants.books_balance(world.store, str(night.run_id))
    names = [f"{date}.{kind}" for date in dates for kind in ("json", "txt")]
    assert sorted(path.name for path in (schedule.root / "reports").iterdir()) == names
    rows = pd.read_parquet(schedule.snapshots)
    assert rows.groupby(rows.date.astype(str)).size().to_dict() == dict.fromkeys(dates, LATENTS)
    saw(
        "27",
        "a week of nights by a worker of two processes and two beats, a judge that errs more from the fifth night on",
        nights=7,
        drift_on=5,
        usd=max(spent),
        seconds=seconds,
    )


def test_one_process_with_all_queues_starves_none(cluster: OpenCluster, saw: Experiment) -> None:
    """A small run is done by the only process while a larger one has it busy, and the larger one goes on meanwhile."""
    world = cluster(600, latency_s=0.05)
    world.worker("gpu,llm,export,control", processes=1)
    large = world.submit(world.config("large"), "large")
    world.until_running(large, "explain")
    before = world.labelled(large), len(world.store.chunks(large))
    small = world.submit(world.config("small", latents=20), "small")
    seconds = world.wait(small, timeout=90)
    assert world.state(large) == "running", "the large run is too small to show anything"
    assert before[1] > 0
    done = world.store.counts(large)
    world.wait(large, timeout=240)
    by_stage = {count.stage for count in done}
    assert {"explain"} <= by_stage
    assert (world.folder / "small" / "summary.json").is_file()
    assert (world.folder / "large" / "summary.json").is_file()
    for run in (small, large):
        invariants.books_balance(world.store, run)
    saw("31", "one process with all four queues, 20 latents beside 600", small_run_s=seconds)
