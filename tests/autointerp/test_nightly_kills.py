"""A process that settles a night is killed at each place where it could be; the next beat ends the night, once, as if nothing had been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import insert, select, update

from autointerp.llm.server import RunningServer
from autointerp.nightly import settling
from autointerp.nightly.book import newest_scores, nights, set_schedule
from autointerp.nightly.schedule import Schedule, parse_schedule
from autointerp.nightly.ticking import tick
from autointerp.pipeline.driver import LocalDriver
from autointerp.pipeline.stages import STAGES
from autointerp.pipeline.starting import open_run
from autointerp.store import LabelStore, open_store
from autointerp.store.models import NightRow
from tests.cli_process import run_cli
from tests.made_up_world import MadeUpAnswerer, endpoint_of, make_base, run_settings, write_config
from tests.pipeline_world import SilentDisplay

ROOT = Path(__file__).parents[2]
LATENTS = 24
MONDAY = datetime(2026, 1, 5, 1, 0, tzinfo=UTC)
DAY = timedelta(days=1)
BEAT = """
import sys
from datetime import datetime
from autointerp.nightly import settling, tick
from autointerp.store import open_store
settling._BLOCK = 8
store = open_store(sys.argv[1], create=False)
print([event.what for event in tick(store, datetime.fromisoformat(sys.argv[2]), submitted=False)], flush=True)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A labelled run and the URL of a judge."""
    folder = tmp_path_factory.mktemp("kills")
    base = make_base(folder / "exemplars", LATENTS)
    with RunningServer(MadeUpAnswerer()) as server:
        config = write_config(folder / "run.toml", run_settings(base, endpoint_of(server.url)))
        done = run_cli(["run", str(config), "--out", str(folder / "labelled")], dict(os.environ))
        assert done.returncode == 0, done.stderr
        yield folder / "labelled", server.url


def schedule_of(folder: Path, base: Path, url: str) -> Schedule:
    detection = {"kind": "detection", "firing": 6, "silent": 6, "per_call": 12, "neighbour_share": 0.0}
    return parse_schedule(
        {
            "name": "week",
            "run": str(base),
            "at": "02:00",
            "timezone": "Europe/Berlin",
            "window_h": 4.0,
            "anchors": 8,
            "folder": str(folder / "nights"),
            "bars": {"detection.score": 0.99},
            "scorers": [detection | {"confirm": False}],
            "endpoints": [endpoint_of(url)],
        },
        "the test",
    )


def begun(store: LabelStore, schedule: Schedule, now: datetime) -> str:
    """A night whose run is done and that is not settled yet."""
    assert [event.what for event in tick(store, now, submitted=False)][:1] == ["begun"]
    run_id = nights(store, "week", newest=1)[0].run_id
    assert run_id is not None
    LocalDriver(open_run(store, run_id), STAGES, SilentDisplay()).run()
    assert store.run_state(run_id) == "done"
    return run_id


def beat(store_url: str, now: datetime, fault: str = "") -> tuple[int, str]:
    """Exit status of a process that beats once, and what it said; ``fault``: where it is killed."""
    done = subprocess.run(
        [sys.executable, "-c", BEAT, store_url, now.isoformat()],
        env={**os.environ, "AUTOINTERP_FAULT": fault},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def outcome(store: LabelStore, schedule: Schedule) -> dict[str, Any]:
    """What a night left, without the times of its own making."""
    night = nights(store, "week", newest=1)[0]
    with store.reading() as connection:
        kept = {
            latent: [(score.scorer, score.night, score.values, score.label) for score in scores]
            for latent, scores in newest_scores(connection, "week", "made-up", range(LATENTS))
        }
    return {
        "state": night.state,
        "counts": night.counts,
        "report": json.loads((schedule.root / "reports" / f"{night.date}.json").read_text()),
        "kept": kept,
        "reports": sorted(path.name for path in (schedule.root / "reports").iterdir()),
        "snapshots": sorted(path.name for path in schedule.snapshots.iterdir()),
        "rows": pd.read_parquet(schedule.snapshots)[["latent", "detection_score", "detection_night", "date"]]
        .astype(str)
        .to_dict(orient="list"),
    }


@pytest.fixture
def second_night(world: tuple[Path, str], tmp_path: Path) -> tuple[str, LabelStore, Schedule, datetime]:
    """A night that is settled and one after it that is not, whose scores are all others than before."""
    base, url = world
    store_url = f"sqlite:///{tmp_path / 'nights.db'}"
    store = open_store(store_url)
    schedule = schedule_of(tmp_path, base, url)
    set_schedule(store, schedule, MONDAY - DAY / 2)
    begun(store, schedule, MONDAY)
    assert beat(store_url, MONDAY + DAY / 24)[0] == 0
    with (
        store.writing() as connection
    ):  # as if it had been another judge, so that all labels are due again and all have changed
        rows = connection.execute(select(settling.LatestScore.id, settling.LatestScore.values)).all()
        for number, values in rows:
            changed = {**values, "score": 1.0, "tpr": 1.0, "fpr": 0.0}
            connection.execute(
                update(settling.LatestScore)
                .where(settling.LatestScore.id == number)
                .values(values=changed, settings="other")
            )
    begun(store, schedule, MONDAY + DAY)
    return store_url, store, schedule, MONDAY + DAY + DAY / 24


FAULTS = ["night:compared:1", "night:kept:1", "night:kept:2", "night:settled:1", "night:reported:1", "night:snapshot:1"]


@pytest.mark.long
def test_whatever_kills_the_settling_the_next_beat_ends_the_night_once(
    second_night: tuple[str, LabelStore, Schedule, datetime], tmp_path: Path
) -> None:
    store_url, store, schedule, now = second_night
    before = tmp_path / "before"
    shutil.copytree(schedule.root, before)
    shutil.copy(tmp_path / "nights.db", tmp_path / "before.db")
    code, said = beat(store_url, now)
    assert (code, said.strip()) == (0, "['settled', 'snapshot']")
    wanted = outcome(store, schedule)
    assert wanted["snapshots"] == ["date=2026-01-05", "date=2026-01-06"]
    assert wanted["state"] == "settled"
    assert wanted["report"]["bars"]["detection.score"]["num_fell"] > 0
    assert {night for scores in wanted["kept"].values() for _, night, *_ in scores} == {"2026-01-06"}
    for fault in FAULTS:
        store.close()
        shutil.rmtree(schedule.root)
        shutil.copytree(before, schedule.root)
        shutil.copy(tmp_path / "before.db", tmp_path / "nights.db")
        code, said = beat(store_url, now, fault)
        assert code == -signal.SIGKILL, (fault, said)
        code, said = beat(store_url, now + timedelta(minutes=1))
        assert code == 0, (fault, said)
        assert "snapshot" in said, fault
        assert outcome(store, schedule) == wanted, fault
        assert beat(store_url, now + timedelta(minutes=2)) == (0, "[]\n"), fault
    store.close()


@pytest.mark.long
def test_of_two_that_settle_at_once_one_says_so(
    second_night: tuple[str, LabelStore, Schedule, datetime],
) -> None:
    store_url, store, schedule, now = second_night
    command = [sys.executable, "-c", BEAT, store_url, now.isoformat()]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
    said = "".join(process.communicate(timeout=120)[0] for process in processes)
    assert [process.returncode for process in processes] == [0] * 3
    assert said.count("settled") == 1, said
    found = outcome(store, schedule)
    assert found["report"]["bars"]["detection.score"]["num_fell"] > 0
    assert found["counts"]["snapshot"] == "date=2026-01-06"
    store.close()


def test_only_the_night_to_compare_with_is_read(tmp_path: Path) -> None:
    """A year of nights whose reports are no JSON but for the last: nobody reads what is not needed."""
    from autointerp.nightly.book import last_compared, settled_dates

    store = open_store(f"sqlite:///{tmp_path / 'nights.db'}")
    set_schedule(store, schedule_of(tmp_path, tmp_path, "http://127.0.0.1:1/v1"), MONDAY)
    with store.writing() as connection:
        for day in range(1, 29):
            row = {"schedule": "week", "date": f"2026-02-{day:02d}", "state": "settled", "ends_at": MONDAY}
            row |= {"counts": {}, "anchors": {"values": {"x": {}}} if day != 27 else {}, "report": {}}
            connection.execute(insert(NightRow).values(row | {"created_at": MONDAY}))
        connection.exec_driver_sql("UPDATE night SET anchors = '{broken' WHERE date < '2026-02-20'")
        connection.exec_driver_sql("UPDATE night SET report = '{broken' WHERE date < '2026-02-20'")
    last = last_compared(store, "week", "2026-02-28")
    assert last is not None
    assert last.date == "2026-02-26"
    assert settled_dates(store, "week")[::27] == ["2026-02-01", "2026-02-28"]
    store.close()
