"""A made-up week of nights against the test server: the clock is what the test says it is, the judge drifts when the test says so.

What a night did is read from the server's ledger, the store's rows and the files, not from the night's report alone.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import func, select, update

from autointerp.cluster.controlling import pause_run
from autointerp.llm.server import RunningServer
from autointerp.nightly import ticking
from autointerp.nightly.base import night_config, open_base
from autointerp.nightly.book import newest_scores, nights, remove_schedule, schedules, set_schedule
from autointerp.nightly.choosing import reasons
from autointerp.nightly.schedule import Schedule, load_schedule
from autointerp.nightly.ticking import NightEvent, tick
from autointerp.nightly.working import tick_and_work
from autointerp.store import ChunkState, LabelStore, open_store
from autointerp.store.models import LatestScore, LLMCall, LLMReservation, Run, ScheduleRow
from sae_core.errors import ConfigError
from tests import planted_world
from tests.autointerp.batch_server import BatchServer, Play
from tests.autointerp.test_llm_runs import CONFIG, KEY, environment, oracle, run
from tests.cli_process import run_cli
from tests.pipeline_world import SilentDisplay

ROOT = Path(__file__).parents[2]
SCHEDULE = """
name = "week"
run = "BASE"
at = "02:00"
timezone = "Europe/Berlin"
window_h = 4.0
anchors = 20
chunk_latents = 4
[bars]
"detection.score" = 0.7
[[scorers]]
kind = "detection"
[[endpoints]]
kind = "openai"
base_url = "URL"
model = "test"
api_key_env = "PLANTED_KEY"
usd_per_million_input_tokens = 1.0
usd_per_million_output_tokens = 2.0
timeout_s = 20.0
"""
LABELLED, SCORABLE = 15, 14
"""Of 16 latents one is dead, and one is too rare to be judged."""
MONDAY = datetime(2026, 1, 5, 1, 0, tzinfo=UTC)
"""02:00 in Berlin."""
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("week-world")
    planted_world.build(folder)
    return folder


@pytest.fixture(scope="module")
def base(world: Path) -> Path:
    """A finished run with good labels."""
    out = world / "base"
    config = world / "base.toml"
    with RunningServer(oracle(world)) as server:
        more = '[[explainers]]\nkind = "max_activating"\n[[scorers]]\nkind = "detection"\n[precision]\nby = ""\n'
        config.write_text(CONFIG.replace("URL", server.url).replace("directions = 4", "directions = 0") + more)
        done = run(config, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_KEY", KEY)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LabelStore]:
    opened = open_store(f"sqlite:///{tmp_path / 'nights.db'}")
    yield opened
    opened.close()


def schedule_of(folder: Path, base: Path, url: str, **changes: str) -> Schedule:
    text = SCHEDULE.replace("BASE", str(base)).replace("URL", url)
    for name, value in changes.items():
        if f"\n{name} = " in text:
            text = text.replace(f"\n{name} = ", f"\n{name} = {value} # ", 1)
        else:
            text = f"{name} = {value}\n{text}"
    path = folder / "schedule.toml"
    path.write_text(text)
    return load_schedule(path)


def worked(store: LabelStore, now: datetime) -> list[NightEvent]:
    events = tick_and_work(store, lambda: now, SilentDisplay())
    assert not [event.message for event in events if event.what == "error"]
    return events


def whats(events: list[NightEvent]) -> list[str]:
    assert not [event.message for event in events if event.what == "error"]
    return [event.what for event in events]


def report_of(schedule: Schedule, date: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((schedule.root / "reports" / f"{date}.json").read_text())
    return found


def night_oracle(world: Path, number: int, error_rate: float) -> Any:
    """A judge whose errors are others every night."""
    return oracle(world, error_rate=error_rate, seed=number, confidence=0.9)


@pytest.mark.long
def test_a_week_with_a_judge_that_drifts_on_friday(world: Path, base: Path, store: LabelStore, tmp_path: Path) -> None:
    drifted, dates = [], []
    for number in range(7):
        # the judge gets worse on Friday, for good
        with RunningServer(night_oracle(world, number, 0.05 if number < 4 else 0.35)) as server:
            schedule = schedule_of(tmp_path, base, server.url)
            set_schedule(store, schedule, MONDAY - DAY / 2)
            now = MONDAY + number * DAY
            assert whats(worked(store, now)) == ["begun", "settled", "snapshot"]
            assert worked(store, now + timedelta(minutes=5)) == []
            asked = {place for call in server.calls if (place := call.path).endswith("completions")}
            assert asked
        dates.append((now + timedelta(hours=1)).date().isoformat())
        drifted.append(report_of(schedule, dates[-1])["drift"])
    assert drifted == [False, False, False, False, True, False, False]
    report = report_of(schedule, dates[4])
    worse = {change["key"]: change for change in report["changes"]}["detection.score"]
    assert worse["drifted"]
    assert worse["high"] < 0
    assert report["before"] == dates[3]
    assert "DRIFT since 2026-01-08" in (schedule.root / "reports" / f"{dates[4]}.txt").read_text()
    assert report["bars"]["detection.score"]["num_fell"] > 0

    # one run a date, its calls are its own, and what was spent is what the ledger says
    runs = {run.id: run for run in store.runs()}
    assert sorted(runs) == [f"night-week-{date.replace('-', '')}" for date in dates]
    assert {run.state for run in runs.values()} == {"done"}
    with store.reading() as connection:
        calls = connection.execute(select(LLMCall.run_id, LLMCall.input_tokens, LLMCall.output_tokens)).all()
    for date in dates:
        own = [call for call in calls if call.run_id == f"night-week-{date.replace('-', '')}"]
        spent = report_of(schedule, date)["spent"]
        assert spent["calls"] == len(own) > 2 * LABELLED
        assert spent["tokens"] == sum(call.input_tokens + call.output_tokens for call in own)

    whole = pd.read_parquet(schedule.snapshots)
    assert sorted(whole.date.astype(str).unique()) == dates
    assert len(whole) == 7 * planted_world.NUM_LATENTS
    friday = pd.read_parquet(schedule.snapshots / f"date={dates[4]}").set_index("latent")
    assert friday.detection_score.notna().sum() == SCORABLE
    assert set(friday.detection_night.dropna()) == {dates[4]}
    assert friday.detection_failure.dropna().to_dict() == {4: "too_few_windows"}
    monday = pd.read_parquet(schedule.snapshots / f"date={dates[0]}").set_index("latent")
    assert monday.detection_score.mean() > friday.detection_score.mean() + 0.1
    assert json.loads((schedule.snapshots / f"date={dates[0]}" / "_manifest.json").read_text())["num_rows"] == 16
    run_scores = {
        score.latent: score.values.get("detection_score")
        for score in store.scores(f"night-week-{dates[4].replace('-', '')}", "planted")
    }
    assert friday.detection_score.dropna().to_dict() == {n: v for n, v in run_scores.items() if v is not None}


@pytest.mark.long
def test_only_what_is_out_of_date_is_scored_beside_the_anchors(
    world: Path, base: Path, store: LabelStore, tmp_path: Path
) -> None:
    with RunningServer(oracle(world)) as server:
        schedule = schedule_of(tmp_path, base, server.url, anchors="2")
        set_schedule(store, schedule, MONDAY - DAY / 2)
        worked(store, MONDAY)
        first = nights(store, "week")[0]
        assert first.counts["stale"] == {"never_scored": LABELLED}
        assert first.counts["scored"] == LABELLED

        worked(store, MONDAY + DAY)  # nothing is stale: the anchors alone
        second = nights(store, "week")[0]
        assert second.counts["planned"] == second.counts["scored"] == 2
        assert second.counts["stale"] == {}
        anchors = first.anchors["anchors"]["planted"]
        assert second.anchors["anchors"]["planted"] == anchors
        # the same windows in the same company, asked anew
        windows = [
            {row.latent: row.items["windows"] for row in store.verdicts(night.run_id or "", "planted", anchors)}
            for night in (first, second)
        ]
        assert windows[0] == windows[1]
        assert len(windows[0]) == 2

        others = [latent for latent in first.anchors["labels"]] and sorted(set(range(16)) - set(anchors) - {3})
        changed = dict(zip(("coder", "corpus", "prompt", "judge", "settings", "label"), others, strict=False))
        with store.writing() as connection:  # as if that many labels had been scored by others
            for column, latent in changed.items():
                connection.execute(update(LatestScore).where(LatestScore.latent == latent).values({column: "other"}))
        worked(store, MONDAY + 2 * DAY)
        third = nights(store, "week")[0]
        assert third.counts["stale"] == {f"{column}_changed": 1 for column in changed}
        assert third.counts["planned"] == 2 + 6
        scored = {score.latent for score in store.scores(third.run_id or "", "planted")}
        assert scored == {*anchors, *changed.values()}

        # a judge that may think is another judge, on purpose: all are scored again, and it is no drift
        schedule = schedule_of(tmp_path, base, server.url, anchors="2", timeout_s="20.0\nthinking_tokens = 16")
        set_schedule(store, schedule, MONDAY)
        worked(store, MONDAY + 3 * DAY)
        fourth = nights(store, "week")[0]
        assert fourth.counts["stale"] == {"judge_changed": LABELLED}
        assert fourth.report["changed_on_purpose"] == {"detection": ["judge"]}
        assert not fourth.report["drift"]

        # a person's word on a label counts the next night
        edited = run_cli(["review", str(base), "5", "--edit", "the word def", "--by", "ann"], environment())
        assert edited.returncode == 0, edited.stderr
        worked(store, MONDAY + 4 * DAY)
        assert nights(store, "week")[0].counts["stale"] == {"label_changed": 1}


@pytest.mark.long
def test_a_budget_and_the_oldest_first(world: Path, base: Path, store: LabelStore, tmp_path: Path) -> None:
    with RunningServer(oracle(world)) as server:
        schedule = schedule_of(tmp_path, base, server.url, anchors="1")
        text = (
            (tmp_path / "schedule.toml").read_text()
            + "[budget]\nusd = 0.025\n[controls]\nnull_latents = 0\nrandom_directions = 0\nshuffled_latents = 1\n"
        )
        (tmp_path / "schedule.toml").write_text(text)
        schedule = load_schedule(tmp_path / "schedule.toml")
        set_schedule(store, schedule, MONDAY - DAY / 2)
        seen: list[set[int]] = []
        for number in range(6):
            events = worked(store, MONDAY + number * DAY)
            assert whats(events) == ["begun", "settled", "snapshot"]
            night = nights(store, "week")[0]
            with sqlite3.connect(tmp_path / "nights.db") as connection:
                (nano,) = connection.execute(
                    "SELECT sum(cost_nano_usd) FROM llm_call WHERE run_id = ?", (night.run_id,)
                ).fetchone()
            assert nano <= 0.025 * 10**9
            assert night.report["spent"]["usd"] == pytest.approx(nano / 1e9, abs=0.5e-9)
            seen.append({score.latent for score in store.scores(night.run_id or "", "planted")})
            assert 2 <= len(seen[-1]) < LABELLED, night.counts
        (anchor,) = nights(store, "week")[0].anchors["anchors"]["planted"]
        assert all(anchor in night for night in seen)
        # nobody's turn comes twice before everybody's has come
        turns: list[int] = [latent for night in seen for latent in sorted(night - {anchor})]
        first_round = turns[: LABELLED - 1]
        assert len(set(first_round[: len(first_round) - len(first_round) % len(seen[0])])) >= len(first_round) - len(
            seen[0]
        )
        with store.reading() as connection:
            kept = dict(newest_scores(connection, "week", "planted", range(16)))
        assert len(kept) == LABELLED


def test_the_window_ends_a_night_and_what_is_scored_counts(
    world: Path, base: Path, label_store: LabelStore, tmp_path: Path
) -> None:
    """On each database: what a cut night scored is kept and can be read."""
    store = label_store
    with RunningServer(oracle(world)) as server:
        schedule = schedule_of(tmp_path, base, server.url, chunk_latents="1")
        set_schedule(store, schedule, MONDAY - DAY / 2)
        # the clock passes the window's end once some chunks of labels are done
        end = MONDAY + timedelta(hours=4)

        def clock() -> datetime:
            if not store.has_run("night-week-20260105"):
                return MONDAY
            done = [chunk for chunk in store.chunks("night-week-20260105", ChunkState.DONE) if chunk.stage == "score"]
            return end if done else MONDAY

        events = tick_and_work(store, clock, SilentDisplay())
        calls = len(server.calls)
        assert whats(events) == ["begun", "cancelled", "settled", "snapshot"]
        assert worked(store, end + timedelta(hours=1)) == []
        assert len(server.calls) == calls, "nobody asks after the end"
    run = store.run("night-week-20260105")
    assert run.state == "cancelled"
    assert "window ended at 2026-01-05 05:00 UTC" in (run.state_note or "")
    scored = nights(store, "week")[0].counts["scored"]
    assert 0 < scored < LABELLED
    assert pd.read_parquet(schedule.snapshots).detection_night.notna().sum() == scored


def test_missed_nights_are_caught_up_once(world: Path, base: Path, store: LabelStore, tmp_path: Path) -> None:
    set_schedule(store, schedule_of(tmp_path, base, "http://127.0.0.1:1/v1"), MONDAY + timedelta(hours=3))
    assert tick(store, MONDAY + timedelta(hours=4)) == [], "the first night is the one after it was set"
    assert [(e.what, e.date) for e in tick(store, MONDAY + DAY)] == [("begun", "2026-01-06")]
    # nobody works it, and the machine is off for ten days, to be on again in an afternoon
    late = MONDAY + 11 * DAY + timedelta(hours=12)
    events = [(event.what, event.date) for event in tick(store, late)]
    assert events == [
        ("cancelled", "2026-01-06"),
        ("settled", "2026-01-06"),
        ("begun", "2026-01-16"),
        ("snapshot", "2026-01-06"),
    ]
    assert [night.date for night in nights(store, "week")] == ["2026-01-16", "2026-01-06"]
    assert nights(store, "week", newest=1)[0].ends_at == late + timedelta(hours=4)
    assert tick(store, late) == []
    assert tick(store, late - 3 * DAY) == [], "a clock that is set back begins nothing"


@pytest.mark.long
def test_nights_by_the_batch_api(world: Path, base: Path, store: LabelStore, tmp_path: Path) -> None:
    """The same rules at half the price: what is scored, what it costs, and a judge that drifts on the third night."""
    drifted, batches = [], []
    for number in range(3):
        judge = night_oracle(world, number, 0.05 if number < 2 else 0.4)
        with BatchServer(answer=lambda body, judge=judge: judge.answer(body).text) as server:  # type: ignore[misc]
            text = SCHEDULE.replace("BASE", str(base)).replace("URL", server.base_url)
            text = text.replace('kind = "openai"', 'kind = "openai_batch"\nwindow_s = 0.2\npoll_s = 0.05')
            path = tmp_path / "schedule.toml"
            path.write_text(text.replace("chunk_latents = 4\n", "") + "[budget]\nusd = 1.0\n")
            schedule = load_schedule(path)
            assert schedule.chunk_size() == 512
            set_schedule(store, schedule, MONDAY - DAY / 2)
            assert whats(worked(store, MONDAY + number * DAY)) == ["begun", "settled", "snapshot"]
            night = nights(store, "week")[0]
            worked_calls, probes = sum(server.paid.values()), server.seen["chats"]
            batches.append(len(server.batches))
        spent = night.report["spent"]
        assert spent["calls"] == worked_calls + probes
        # 10 tokens in and 3 out a call, at 1 and 2 dollars a million, halved
        assert spent["usd"] == pytest.approx((worked_calls + probes) * (10 * 1.0 + 3 * 2.0) / 1e6 / 2)
        assert night.counts["scored"] == LABELLED
        assert set(server.paid.values()) == {1}
        drifted.append(night.report["drift"])
    assert drifted == [False, False, True]
    assert max(batches) < 20
    assert len(pd.read_parquet(schedule.snapshots)) == 3 * planted_world.NUM_LATENTS


def test_a_night_that_ends_inside_a_batch_reports_what_the_batch_may_cost(
    world: Path, base: Path, store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody collects it, since the next night has a run of its own; the provider bills it all the same."""
    monkeypatch.setattr("autointerp.llm.runtime._DRAIN_S", 0.1)
    slow = Play(polls=10**6)
    with BatchServer([slow]) as server:
        text = SCHEDULE.replace("BASE", str(base)).replace("URL", server.base_url)
        text = text.replace('kind = "openai"', 'kind = "openai_batch"\nwindow_s = 0.2\npoll_s = 0.05')
        path = tmp_path / "schedule.toml"
        path.write_text(text.replace("chunk_latents = 4\n", ""))
        schedule = load_schedule(path)
        set_schedule(store, schedule, MONDAY - DAY / 2)

        def clock() -> datetime:
            return MONDAY + timedelta(hours=4) if server.seen["polled"] > 3 else MONDAY

        assert whats(tick_and_work(store, clock, SilentDisplay())) == ["begun", "cancelled", "settled", "snapshot"]
        asked = sum(content.count(b"custom_id") for content in server.files.values())
        billed = (asked + server.seen["chats"]) * 13
    assert asked > LABELLED
    spent = report_of(schedule, "2026-01-05")["spent"]
    assert spent["calls"] == asked + server.seen["chats"]
    assert spent["tokens"] >= billed
    with store.reading() as connection:
        entered = connection.execute(select(LLMCall.input_tokens + LLMCall.output_tokens)).scalars().all()
        assert connection.execute(select(func.sum(LLMReservation.tokens))).scalar() == 0
    assert sum(entered) == spent["tokens"]


CHILD = """
import sys, time
from datetime import datetime
from autointerp.nightly import tick
from autointerp.store import open_store
store = open_store(sys.argv[1], create=False)
while time.time() < float(sys.argv[3]):
    pass
for event in tick(store, datetime.fromisoformat(sys.argv[2])):
    print(event.what, event.run_id, event.message)
"""


def test_beats_at_once_make_one_night(base: Path, store_url: str, tmp_path: Path) -> None:
    """Four processes that beat at the same instant, on each database."""
    import time

    store = open_store(store_url)
    set_schedule(store, schedule_of(tmp_path, base, "http://127.0.0.1:1/v1"), MONDAY - DAY / 2)
    begin = time.time() + 3.0
    command = [sys.executable, "-c", CHILD, store_url, MONDAY.isoformat(), str(begin)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)
    ]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert {out.strip() for out, _ in said} <= {"begun night-week-20260105", ""}, said
    assert any(out for out, _ in said)
    assert [run.id for run in store.runs()] == ["night-week-20260105"]
    (night,) = nights(store, "week")
    assert (night.state, night.run_id) == ("running", "night-week-20260105")
    assert [source.name for source in store.sources("night-week-20260105")] == ["planted"]
    with store.reading() as connection:
        assert len(connection.execute(select(Run.id)).all()) == 1
    remove_schedule(store, "week")
    assert store.has_run("night-week-20260105"), "what was made stays"
    store.close()


def test_what_is_wrong_with_one_schedule_is_said_and_holds_up_no_other(
    base: Path, store: LabelStore, tmp_path: Path
) -> None:
    good = schedule_of(tmp_path, base, "http://127.0.0.1:1/v1")
    set_schedule(store, good, MONDAY - DAY / 2)
    set_schedule(store, good.model_copy(update={"name": "a-bad-one", "run": "nobody"}), MONDAY - DAY / 2)
    events = {event.schedule: event for event in tick(store, MONDAY)}
    assert events["week"].what == "begun"
    assert events["a-bad-one"].what == "error"
    assert "scores the run 'nobody', and the store has none of that id or name" in events["a-bad-one"].message


def test_a_stored_schedule_that_cannot_be_read_holds_up_no_other_and_can_be_removed(
    base: Path, store: LabelStore, tmp_path: Path
) -> None:
    """As after an upgrade that renamed a key."""
    good = schedule_of(tmp_path, base, "http://127.0.0.1:1/v1")
    set_schedule(store, good, MONDAY - DAY / 2)
    set_schedule(store, good.model_copy(update={"name": "a-bad-one"}), MONDAY - DAY / 2)
    with store.writing() as connection:
        broken = good.model_dump(mode="json") | {"name": "a-bad-one", "elder": 1}
        connection.execute(update(ScheduleRow).where(ScheduleRow.name == "a-bad-one").values(config=broken))
    events = {event.schedule: event for event in tick(store, MONDAY)}
    assert events["week"].what == "begun"
    assert "'elder'" in events["a-bad-one"].message
    remove_schedule(store, "a-bad-one")
    assert [kept.name for kept in schedules(store)] == ["week"]


def test_a_night_that_cannot_be_settled_holds_up_no_later_one(
    base: Path, store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = schedule_of(tmp_path, base, "http://127.0.0.1:1/v1")
    set_schedule(store, good, MONDAY - DAY / 2)
    assert whats(tick(store, MONDAY)) == ["begun"]

    def full(*given: object) -> None:
        raise PermissionError(13, "Permission denied", "reports")

    monkeypatch.setattr(ticking, "write_report", full)
    events = tick(store, MONDAY + DAY)
    assert [(event.date, event.what) for event in events if event.what != "cancelled"] == [
        ("2026-01-05", "error"),
        ("2026-01-06", "begun"),
        ("2026-01-05", "error"),
    ]


def test_a_run_that_a_server_stopped_goes_on_in_its_window_and_one_that_a_person_paused_does_not(
    base: Path, store: LabelStore, tmp_path: Path
) -> None:
    set_schedule(store, schedule_of(tmp_path, base, "http://127.0.0.1:1/v1"), MONDAY - DAY / 2)
    assert whats(tick(store, MONDAY)) == ["begun"]
    run_id = nights(store, "week")[0].run_id
    assert run_id is not None
    store.set_run_state(run_id, "paused", "nobody answers at http://127.0.0.1:1/v1")
    assert whats(tick(store, MONDAY + DAY / 24)) == ["resumed"]
    assert store.run_state(run_id) == "running"
    pause_run(store, run_id)
    assert tick(store, MONDAY + DAY / 24) == []
    assert worked(store, MONDAY + DAY / 24) == []
    assert store.run_state(run_id) == "paused"


@pytest.mark.long
def test_a_second_call_of_cron_leaves_the_first_ones_run_alone(
    world: Path, base: Path, store: LabelStore, tmp_path: Path
) -> None:
    with RunningServer(oracle(world)) as server:
        schedule = schedule_of(tmp_path, base, server.url)
        set_schedule(store, schedule, MONDAY - DAY / 2)
        assert whats(tick(store, MONDAY, submitted=False)) == ["begun"]
        lock = schedule.root / "runs" / "2026-01-05" / ".working"
        holder = subprocess.Popen(
            [sys.executable, "-c", f"import fcntl, time; f = open({str(lock)!r}, 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(60)"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            assert worked(store, MONDAY) == []
            assert not store.chunks("night-week-20260105")
        finally:
            holder.kill()
            holder.wait(10)
        assert whats(worked(store, MONDAY)) == ["settled", "snapshot"]


def test_a_scorer_that_no_text_has_a_score_of_is_refused(base: Path, store: LabelStore, tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path, base, "http://127.0.0.1:1/v1")
    counted = schedule.model_copy(update={"scorers": ({"kind": "pattern"},), "bars": {}})
    with open_base(store, counted) as opened, pytest.raises(ConfigError, match="the scorer 'pattern', which counts"):
        night_config(counted, opened, {source.name: [0] for source in opened.sources})


def test_reasons_that_do_not_count_are_passed_over() -> None:
    assert list(reasons([], {}, "c", "k", "text")) == []


def test_the_command_line(base: Path, tmp_path: Path) -> None:
    schedule_of(tmp_path, base, "http://127.0.0.1:1/v1")
    folder = str(tmp_path / "store")

    def command(*words: str) -> tuple[int, str, str]:
        done = run_cli(["nightly", *words, "--store", folder], environment())
        return done.returncode, done.stdout, done.stderr

    code, out, err = command("set", str(tmp_path / "schedule.toml"))
    assert (code, err) == (0, "")
    assert "its next night begins at " in out
    assert "week: " in command("list")[1]
    assert command("tick") == (0, "", "")
    code, _, err = command("report", "week")
    assert code == 2
    assert "has no settled night" in err
    assert command("remove", "weak")[0] == 2
    assert command("remove", "week")[0] == 0
    (tmp_path / "schedule.toml").write_text("name = 1")
    code, _, err = command("set", str(tmp_path / "schedule.toml"))
    assert code == 2
    assert err.count("\n") == 1
