"""Submitting, pausing, resuming and cancelling runs, and whose turn it is: words in the store, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from autointerp.artefacts.exchange import Exchange
from autointerp.cluster import preparing, presence
from autointerp.cluster.contexts import RETRIED, RunContexts
from autointerp.cluster.controlling import cancel_run, pause_run, resume_run, retry_failed
from autointerp.cluster.preparing import plan_preparations
from autointerp.cluster.reconciling import ClusterReconciler
from autointerp.cluster.settings import WorkerSettings, load_settings
from autointerp.cluster.submitting import submit_run
from autointerp.cluster.working import QueueWorker
from autointerp.config import load_config
from autointerp.config.run import RunConfig
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.driver import LocalDriver
from autointerp.pipeline.folder import RunFolder
from autointerp.pipeline.interruption import Halted
from autointerp.pipeline.starting import claim_folder, store_url
from autointerp.progress import SilentDisplay
from autointerp.report import run_status
from autointerp.report.run_status import read_status
from autointerp.store import ChunkState, LabelStore, NewChunk, open_store
from autointerp.store.opening import sqlite_url
from sae_core.errors import ConfigError, StoreError, StoreUnavailableError
from tests import pipeline_world, planted_world
from tests.cli_process import run_cli
from tests.servers import RedisServer
from workers.celery_broker import CeleryBroker
from workers.configuration import make_app
from workers.process import WorkerProcess

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
    with pytest.raises(StoreError, match=r"'nightly job 7' and the run .* do not belong together"):
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


def test_what_is_to_be_tried_again_does_not_wake_a_paused_or_cancelled_run(
    tmp_path: Path, url: str, store: LabelStore
) -> None:
    run_id = submit_run(config_of(tmp_path, url), "run", tmp_path / "out").run_id
    plan_preparations(store, run_id)
    environment = {"AUTOINTERP_STORE__URL": url, "PATH": "/usr/bin", "HF_HUB_OFFLINE": "1"}
    for state in ("paused", "cancelled"):
        lease = store.claim_next("gpu", "me", 60)
        assert lease is not None
        store.fail(lease, "there is no subject")
        store.set_run_state(run_id, state, "by hand")
        done = run_cli(["retry-failed", run_id], environment)
        assert done.returncode == 0, done.stderr
        assert f"and it is {state}: autointerp resume {run_id}" in done.stdout
        assert store.run_state(run_id) == state
        assert store.ready_by_queue() == {}
        resume_run(store, run_id)
        assert store.ready_by_queue() == {"gpu": 1, "llm": 1}


def test_replies_are_asked_for_again_until_the_run_is_done_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = pipeline_world.open_context(tmp_path / "local")
    store, run_id = context.store, context.run_id
    monkeypatch.setattr("autointerp.cluster.contexts.open_run", lambda store, run_id: replace(context))
    contexts, reconciler = RunContexts(store, 2), ClusterReconciler(store, Deaf(), WorkerSettings())
    for _ in range(2):
        assert not contexts.of(run_id).asks_again
        store.count_event(run_id, RETRIED)
        assert contexts.of(run_id).asks_again
        reconciler._end(contexts.of(run_id))
        assert store.run_state(run_id) == "done"
        assert not contexts.of(run_id).asks_again


class Deaf:
    """A broker that carries nothing."""

    def depth(self, queue: str) -> int:
        return 0

    def hint(self, queue: str, count: int = 1) -> None:
        self.hinted = queue


@pytest.mark.long
def test_a_run_that_cannot_be_looked_at_holds_up_no_other(
    tmp_path: Path, url: str, store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = (
        submit_run(config_of(tmp_path, url, f"seed={n}"), "run", tmp_path / f"out-{n}").run_id for n in range(2)
    )
    real = preparing.open_run

    def opened(store: LabelStore, run_id: str) -> RunContext:
        if run_id == broken:
            raise PermissionError(13, "Permission denied", "/shared")
        return real(store, run_id)

    monkeypatch.setattr(preparing, "open_run", opened)
    broker = Deaf()
    reconciler = ClusterReconciler(store, broker, WorkerSettings())
    assert reconciler.look()
    assert {chunk.stage for chunk in store.chunks(sound)} == {"check_endpoints", "prepare"}
    assert broker.hinted in ("gpu", "llm")
    assert store.run(broken).state == "running"
    for _ in range(4):
        reconciler.look()
    assert store.run(broken).state == "failed"
    assert "Permission denied" in (store.run(broken).state_note or "")
    assert store.run(sound).state == "running"
    reconciler.close()


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


def test_what_becomes_of_a_chunk_whose_work_has_not_begun(
    tmp_path: Path, url: str, store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place for this machine's copies cannot be made: the chunk goes back at once, and `status` says why."""
    run_id = submit_run(config_of(tmp_path, url), "run", tmp_path / "out").run_id
    plan_preparations(store, run_id)
    monkeypatch.setenv("AUTOINTERP_ARTEFACTS__URL", f"file://{tmp_path}/remote")
    monkeypatch.setenv("AUTOINTERP_ARTEFACTS__CACHE", str(tmp_path / "run.toml"))  # a file
    worker = QueueWorker(store, WorkerSettings())
    with pytest.raises(OSError, match="Not a directory"):
        worker.turn("llm")
    worker.close()
    [chunk] = [chunk for chunk in store.chunks(run_id) if chunk.stage == "check_endpoints"]
    assert (chunk.state, chunk.attempts) == (ChunkState.READY, 1)
    assert "run.toml" in store.errors_of_ready(run_id)[0]


def test_a_place_for_files_that_is_away_is_told(
    tmp_path: Path, url: str, store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> int:
        raise StoreUnavailableError("the files in 's3://bucket' cannot be reached")

    run_id = submit_run(config_of(tmp_path, url), "run", tmp_path / "out").run_id
    plan_preparations(store, run_id)
    monkeypatch.setenv("AUTOINTERP_ARTEFACTS__URL", f"file://{tmp_path}/remote")
    monkeypatch.setenv("AUTOINTERP_ARTEFACTS__CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Exchange, "fetch", away)
    worker = QueueWorker(store, WorkerSettings(backoff_s=60))
    with pytest.raises(StoreUnavailableError):
        worker.turn("llm")
    assert worker.turn("llm").done == 0  # it rests
    worker.close()
    assert read_status(store, run_id).errors == ["check_endpoints 0: the files in 's3://bucket' cannot be reached"]
    [chunk] = [chunk for chunk in store.chunks(run_id) if chunk.stage == "check_endpoints"]
    assert chunk.attempts == 0


def test_sources_are_seen_once_a_run_is_prepared(tmp_path: Path, url: str, store: LabelStore) -> None:
    run_id = submit_run(config_of(tmp_path, url), "run", tmp_path / "out").run_id
    contexts = RunContexts(store, 2)
    assert contexts.of(run_id).sources == []
    sources = pipeline_world.fake_sources()
    store.add_sources(run_id, sources)
    assert contexts.of(run_id).sources == sources
    contexts.close()


PATTERNS = """
subject.model = "subject"
corpus.path = "corpus.jsonl"
[[coders]]
path = "coder"
[extraction]
num_tokens = 6000
context_length = 64
window_length = 16
pool_windows = 150
[[explainers]]
kind = "pattern"
[[scorers]]
kind = "pattern"
"""


@pytest.mark.long
def test_a_process_has_one_subject_at_a_time(tmp_path: Path, store: LabelStore, url: str) -> None:
    """Three runs, two of them of one subject: the second of these is prepared and worked on it, that of the third one ends its stay."""
    for name in ("world", "other"):
        planted_world.build(tmp_path / name)
        (tmp_path / name / "run.toml").write_text(PATTERNS)

    def submit(world: str, seed: int) -> str:
        sets = [f"seed={seed}"]
        config = load_config(tmp_path / world / "run.toml", sets, {"AUTOINTERP_STORE__URL": url})
        run_id = submit_run(config, "run", tmp_path / f"out-{seed}").run_id
        plan_preparations(store, run_id)
        lease = store.claim_next("gpu", "me", 60)
        assert lease is not None
        assert lease.run_id == run_id
        assert worker._do(lease), store.chunks(run_id)[0].error
        return run_id

    worker = QueueWorker(store, WorkerSettings())
    kept = worker._contexts
    first, second = submit("world", 1), submit("world", 2)
    assert kept.of(first).subject is kept.of(second).subject
    third = submit("other", 3)
    assert "subject" in kept.of(third).__dict__
    assert not any("subject" in kept.of(run_id).__dict__ for run_id in (first, second))
    subject = kept.for_subject(first).subject  # loaded again
    assert kept.for_subject(second).subject is subject
    assert "subject" not in kept.of(third).__dict__
    # weights that changed on disk are not those in memory
    shutil.copytree(tmp_path / "world" / "subject", tmp_path / "before")
    weights = tmp_path / "world" / "subject" / "model.safetensors"
    tensors = load_file(weights)
    name = min(tensors)
    save_file(tensors | {name: tensors[name] + 1}, weights, {"format": "pt"})
    fourth = submit("world", 4)
    assert kept.of(fourth).subject is not subject
    worker.close()


def test_a_hint_says_how_long_its_turn_may_take(monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer) -> None:
    """A chunk that waits for a batch may take a day, one that hangs on a GPU may not."""
    import redis

    monkeypatch.setenv("AUTOINTERP_BROKER__URL", redis_server.url)
    monkeypatch.setenv("AUTOINTERP_WORKER__TURN_S", "5")
    app = make_app()
    app.loader.import_default_modules()
    broker = CeleryBroker(app)
    with redis.Redis.from_url(redis_server.url) as client:
        for queue, limit_s in (("llm", 100_005), ("gpu", 3_605)):
            broker.hint(queue)
            [message] = client.lrange(f"autointerp:{queue}", 0, -1)  # type: ignore[misc]
            assert json.loads(message)["headers"]["timelimit"] == [limit_s, None]
    app.close()


def test_a_section_that_is_no_json_is_told_without_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOINTERP_STORE", "postgresql://user:hidden@host/db")
    with pytest.raises(ConfigError, match="AUTOINTERP_STORE__URL") as told:
        load_settings()
    assert "hidden" not in str(told.value)


def test_a_run_begun_here_is_not_handed_to_workers(tmp_path: Path, url: str, store: LabelStore) -> None:
    """`autointerp run` with the workers' store: they would never do it, and nobody may say that they do."""
    config = config_of(tmp_path, url)
    folder = RunFolder(tmp_path / "out")
    folder.root.mkdir()
    note, _ = claim_folder(store, config, "run", folder)
    store.set_run_state(note.run_id, "paused", "the budget is used up")
    with pytest.raises(StoreError, match="autointerp run"):
        submit_run(config, "run", folder.root)
    for act in (resume_run, lambda store, run_id: retry_failed(store, run_id, folder)):
        with pytest.raises(StoreError, match="autointerp run"):
            act(store, note.run_id)
    assert store.run(note.run_id).state == "paused"


def test_a_run_submitted_again_says_where_it_stands(tmp_path: Path, url: str, store: LabelStore) -> None:
    run_id = submit_run(config_of(tmp_path, url), "run", tmp_path / "out").run_id
    cancel_run(store, run_id)
    done = run_cli(
        ["submit", str(tmp_path / "run.toml"), "--out", str(tmp_path / "out")],
        {"AUTOINTERP_STORE__URL": url, "PATH": "/usr/bin", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert f"Run {run_id} was submitted before, and is cancelled" in done.stdout
    assert f"autointerp resume {run_id}" in done.stdout


def test_a_process_that_began_without_a_store_shows_up_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines come up in any order after a power cut."""
    monkeypatch.setattr(presence, "_BEAT_S", 0.1)
    folder = tmp_path / "not-mounted-yet"
    monkeypatch.setenv("AUTOINTERP_STORE__URL", sqlite_url(folder / "cluster.db"))
    process = WorkerProcess(load_settings())
    process.appear("worker@here", ["llm"])
    time.sleep(0.3)
    folder.mkdir()
    store = open_store(sqlite_url(folder / "cluster.db"))
    deadline = time.monotonic() + 10
    while not store.live_workers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [worker.name for worker in store.live_workers()] == ["worker@here"]
    process.close()
    assert store.live_workers() == []
    store.close()


def test_a_run_on_this_machine_takes_the_stores_password_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the environment has the URL without it."""
    url = "postgresql+psycopg://autointerp@postgres/autointerp"
    (tmp_path / "password").write_text("s/cret\n")
    monkeypatch.setenv("AUTOINTERP_STORE__URL", url)
    monkeypatch.setenv("AUTOINTERP_STORE__PASSWORD_FILE", str(tmp_path / "password"))
    folder = RunFolder(tmp_path / "out")
    assert store_url(config_of(tmp_path, url), folder) == url.replace("@", ":s%2Fcret@")
    other = "postgresql+psycopg://somebody@elsewhere/base"
    assert store_url(config_of(tmp_path, None, f"store.url={other}"), folder) == other
    assert store_url(config_of(tmp_path, None), folder) == sqlite_url(folder.database)


def test_following_a_run_does_not_add_up_all_its_calls_every_time(
    tmp_path: Path, url: str, store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = submit_run(config_of(tmp_path, url), "run", tmp_path / "out").run_id
    cancel_run(store, run_id)

    def all_calls(*_: object) -> None:
        raise AssertionError("millions of rows, every two seconds")

    monkeypatch.setattr(run_status, "spend_by_purpose", all_calls)
    console = Console(record=True, width=200)
    run_status.follow_runs([(store, run_id)], console)
    assert "cancelled by hand" in console.export_text()
