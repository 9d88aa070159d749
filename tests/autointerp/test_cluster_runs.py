"""Submitting, pausing, resuming and cancelling runs, and whose turn it is: words in the store, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autointerp.cluster.contexts import RETRIED, RunContexts
from autointerp.cluster.controlling import cancel_run, pause_run, resume_run, retry_failed
from autointerp.cluster.preparing import plan_preparations
from autointerp.cluster.submitting import submit_run
from autointerp.config import load_config
from autointerp.config.run import RunConfig
from autointerp.pipeline.driver import LocalDriver
from autointerp.pipeline.folder import RunFolder
from autointerp.pipeline.interruption import Halted
from autointerp.progress import SilentDisplay
from autointerp.store import ChunkState, LabelStore, NewChunk, open_store
from autointerp.store.opening import sqlite_url
from sae_core.errors import ConfigError, StoreError
from tests import pipeline_world
from tests.cli_process import run_cli

CONFIG = """
subject.model = "subject"
corpus.path = "corpus.txt"
[[coders]]
path = "coder"
[[endpoints]]
kind = "scripted"
name = "judge"
replies = ["yes"]
[[explainers]]
kind = "max_activating"
endpoint = "judge"
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return sqlite_url(tmp_path / "cluster.db") if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def store(url: str) -> Iterator[LabelStore]:
    store = open_store(url)
    yield store
    store.close()


def config_of(folder: Path, url: str | None, *sets: str) -> RunConfig:
    (folder / "subject").mkdir(exist_ok=True)
    (folder / "coder").mkdir(exist_ok=True)
    (folder / "corpus.txt").write_text("text")
    (folder / "run.toml").write_text(CONFIG)
    return load_config(folder / "run.toml", sets, {} if url is None else {"AUTOINTERP_STORE__URL": url})


def test_a_submission_is_a_row_and_a_note(tmp_path: Path, url: str, store: LabelStore) -> None:
    submitted = submit_run(config_of(tmp_path, url), "run", tmp_path / "out")
    run = store.run(submitted.run_id)
    assert (submitted.new, run.state, run.submitted, run.folder) == (True, "running", True, str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]
    assert store.chunks(run.id) == []
    again = submit_run(config_of(tmp_path, url), "run", tmp_path / "out")
    assert (again.run_id, again.new) == (run.id, False)
    with pytest.raises(StoreError, match="belongs to another run"):
        submit_run(config_of(tmp_path, url, "seed=7"), "run", tmp_path / "out")


def test_a_run_is_not_submitted_to_its_own_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="AUTOINTERP_STORE__URL"):
        submit_run(config_of(tmp_path, None), "run", tmp_path / "out")


def test_fifty_submissions_with_one_key_are_one_run(tmp_path: Path, url: str, store: LabelStore) -> None:
    config = config_of(tmp_path, url)
    open_store(url).close()
    gate = threading.Barrier(10)

    def submit(number: int) -> str:
        if number < 10:
            gate.wait()
        return submit_run(config, "run", tmp_path / f"out-{number}", key="nightly job 7").run_id

    with ThreadPoolExecutor(10) as pool:
        ids = set(pool.map(submit, range(50)))
    assert len(ids) == 1
    assert [run.id for run in store.runs()] == list(ids)
    assert [path.parent for path in tmp_path.glob("out-*/run.json")] == [Path(store.runs()[0].folder)]
    with pytest.raises(StoreError, match="'nightly job 7' and the run .* do not belong together"):
        submit_run(config_of(tmp_path, url, "seed=7"), "run", tmp_path / "other", key="nightly job 7")
    assert len(store.runs()) == 1


def test_preparations_are_planned_once_by_any_number_of_processes(tmp_path: Path, url: str, store: LabelStore) -> None:
    run_id = submit_run(config_of(tmp_path, url), "run", tmp_path / "out").run_id
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: plan_preparations(store, run_id), range(8)))
    assert [(c.stage, c.queue, c.state) for c in store.chunks(run_id)] == [
        ("check_endpoints", "llm", "ready"),
        ("prepare", "gpu", "ready"),
    ]


def test_a_paused_run_is_not_claimed_and_a_resumed_one_is(tmp_path: Path, url: str, store: LabelStore) -> None:
    run_id = submit_run(config_of(tmp_path, url), "run", tmp_path / "out").run_id
    plan_preparations(store, run_id)
    pause_run(store, run_id)
    assert store.claim_next("gpu", "me", 60) is None
    assert store.ready_by_queue() == {}
    assert store.run(run_id).state_note == "paused by hand"
    resume_run(store, run_id)
    assert store.ready_by_queue() == {"gpu": 1, "llm": 1}
    lease = store.claim_next("gpu", "me", 60)
    assert lease is not None
    assert lease.key.stage == "prepare"
    assert store.claim_next("gpu", "other", 60) is None
    cancel_run(store, run_id)
    assert store.claim_next("llm", "me", 60) is None
    with pytest.raises(StoreError, match="is cancelled and cannot be paused"):
        pause_run(store, run_id)
    store.set_run_state(run_id, "done")
    for act in (cancel_run, resume_run):
        with pytest.raises(StoreError, match="is done and cannot be"):
            act(store, run_id)


def test_resuming_changes_budgets_and_nothing_that_decides_results(tmp_path: Path, url: str, store: LabelStore) -> None:
    run_id = submit_run(config_of(tmp_path, url, "budget.tokens=1000"), "run", tmp_path / "out").run_id
    contexts = RunContexts(store, 2)
    assert contexts.of(run_id).config.budget.tokens == 1000
    pause_run(store, run_id)
    resume_run(store, run_id, ["budget.tokens=2000"])
    assert contexts.of(run_id).config.budget.tokens == 2000
    pause_run(store, run_id)
    with pytest.raises(StoreError, match="would make the run"):
        resume_run(store, run_id, ["seed=9"])
    assert store.run(run_id).state == "paused"
    assert contexts.of(run_id).config.seed == 0


def test_failed_preparations_are_tried_again(tmp_path: Path, url: str, store: LabelStore) -> None:
    run_id = submit_run(config_of(tmp_path, url), "run", tmp_path / "out").run_id
    plan_preparations(store, run_id)
    lease = store.claim_next("gpu", "me", 60)
    assert lease is not None
    store.fail(lease, "there is no subject")
    store.set_run_state(run_id, "failed", "there is no subject")
    assert retry_failed(store, run_id, RunFolder(tmp_path / "out")) == 1
    assert store.run(run_id).state == "running"
    assert [c.state for c in store.chunks(run_id) if c.stage == "prepare"] == [ChunkState.READY]
    assert store.event_counts(run_id).get(RETRIED) is None


def test_runs_take_turns_and_stages_further_on_come_first(tmp_path: Path, url: str, store: LabelStore) -> None:
    ids = [submit_run(config_of(tmp_path, url, f"seed={n}"), "run", tmp_path / f"out-{n}").run_id for n in range(2)]
    for run_id in ids:
        for stage, priority, count in (("early", 0, 3), ("late", -1, 2)):
            store.plan(run_id, stage, [NewChunk(stage, "llm", n, {}, priority=priority) for n in range(count)])
    order, served = [], dict[str, int]()
    for turn in range(1, 11):  # one process, which finishes each before it takes the next
        lease = store.claim_next("llm", "me", 60, served=served)
        assert lease is not None
        served[lease.run_id] = turn
        order.append((ids.index(lease.run_id), lease.key.stage, lease.key.ordinal))
        store.finish(lease)
    each = [("late", 0), ("late", 1), ("early", 0), ("early", 1), ("early", 2)]
    assert order == [(run, *chunk) for chunk in each for run in (0, 1)]
    assert store.claim_next("llm", "me", 60) is None


def test_a_run_begun_here_is_left_alone_by_workers(tmp_path: Path, store: LabelStore) -> None:
    context = pipeline_world.open_context(tmp_path / "local")
    context.store.plan(context.run_id, "shards", [NewChunk("shards", "gpu", 0, {})])
    assert context.store.claim_next("gpu", "me", 60) is None
    assert context.store.submitted_and_running() == []


def test_a_local_run_that_somebody_pauses_stops_and_goes_on_later(tmp_path: Path) -> None:
    context = pipeline_world.open_context(tmp_path / "local")

    class PausedByOther(SilentDisplay):
        def advance(self, stage: str, units_in_chunk: int) -> None:
            if stage == "explain":
                other = open_store(sqlite_url(tmp_path / "local" / "autointerp.db"))
                other.set_run_state(context.run_id, "paused", "paused by hand")
                other.close()

    with pytest.raises(Halted, match="paused"):
        LocalDriver(context, pipeline_world.STAGES, PausedByOther()).run()
    assert context.store.run(context.run_id).state == "paused"
    assert context.store.chunks(context.run_id, ChunkState.RUNNING) == []
    LocalDriver(context, pipeline_world.STAGES, SilentDisplay()).run()
    assert context.store.run(context.run_id).state == "done"


def test_the_commands_say_what_became_of_a_run(tmp_path: Path, url: str) -> None:
    config_of(tmp_path, url)
    environment = {"AUTOINTERP_STORE__URL": url, "PATH": "/usr/bin", "HF_HUB_OFFLINE": "1"}
    done = run_cli(["submit", str(tmp_path / "run.toml"), "--out", str(tmp_path / "out")], environment)
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.split()[1]
    said = {}
    for command in ("pause", "resume", "cancel", "retry-failed"):
        done = run_cli([command, run_id[:6]], environment)
        assert done.returncode == 0, done.stderr
        said[command] = done.stdout.strip()
    assert said["pause"].startswith(f"Run {run_id} is paused")
    assert said["retry-failed"] == f"Run {run_id} has nothing to try again."
    shown = run_cli(["status", "--json"], environment)
    assert [(run["run_id"], run["state"]) for run in json.loads(shown.stdout)] == [(run_id, "cancelled")]
    shown = run_cli(["status", run_id, "--follow"], environment)  # it has ended, so there is nothing to follow
    assert "cancelled by hand" in shown.stdout
    refused = run_cli(["pause", run_id], environment)
    assert refused.returncode == 2
    assert "is cancelled and cannot be paused" in refused.stderr
