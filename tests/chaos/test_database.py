"""Experiments on the store: PostgreSQL away, sessions ended, answers lost, SQLite locked; and the budget it guards."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

import pytest

from tests import invariants
from tests.chaos.conftest import Experiment, OpenCluster
from tests.cluster_world import Bases, Cluster, wait_until
from tests.made_up_world import endpoint_of, run_settings, write_config
from tests.servers import PostgresServer
from tests.tcp_proxy import TcpProxy

pytestmark = pytest.mark.chaos

LATENTS = 60


@pytest.mark.parametrize("away_s", [5.0, 30.0])
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_postgresql_is_away(cluster: OpenCluster, bases: Bases, saw: Experiment, away_s: float, end: str) -> None:
    """Row 12."""
    whole = bases.reference(LATENTS)
    with PostgresServer() as postgres:
        world = cluster(LATENTS, latency_s=0.3, store=postgres.new_database())
        run = world.submit(world.config())
        worker = world.worker()
        world.until_calls(12)
        pool = {process.pid for process in worker.pool()}
        getattr(postgres, end)()
        time.sleep(away_s)
        postgres.start()
        begun = time.monotonic()
        _answers(world)
        world.wait(run)
        assert worker.process.poll() is None
        assert {process.pid for process in worker.pool()} == pool, "no process crashed"
        seconds = time.monotonic() - begun
        extra = invariants.all_hold(world, run, whole, interrupted=len(pool) * 4)
        world.end_workers()
        world.store.close()
    done = f"PostgreSQL {'stopped' if end == 'stop' else 'killed'} for {away_s:.0f} s"
    saw("12", done, processes_that_died=0, extra_calls=extra, done_after_s=seconds)


def _answers(world: Cluster) -> None:
    store = world.store

    def there() -> bool:
        with contextlib.suppress(Exception):
            return bool(store.runs())
        return False

    wait_until(there, 30, "the store answers")


def test_sessions_are_ended_and_answers_of_commits_lost(
    cluster: OpenCluster, bases: Bases, saw: Experiment, postgres_server: PostgresServer, postgres_url: str
) -> None:
    """Row 12: pg_terminate_backend, and commits that were made though nobody heard."""
    whole = bases.reference(LATENTS)
    database = postgres_url.rpartition("/")[2]
    end_all = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE datname = '{database}' AND pid <> pg_backend_pid() AND application_name = 'autointerp'"
    )
    with TcpProxy(postgres_server.port) as proxy:
        world = cluster(LATENTS, latency_s=0.3, store=postgres_url)
        run = world.submit(world.config())
        proxied = postgres_url.replace(f":{postgres_server.port}/", f":{proxy.port}/")
        worker = world.worker(more={"AUTOINTERP_STORE__URL": proxied})
        world.until_calls(8)
        ended = 0
        for number in range(12):
            proxy.lose(b"COMMIT\x00", "after" if number % 2 else "before")
            time.sleep(0.3)
            if number % 3 == 0:
                with contextlib.suppress(Exception):
                    ended += len(postgres_server.execute(end_all))
        wait_until(lambda: _state(world, run) == "done", 120, "the run is done", world)  # this session was ended too
        assert worker.process.poll() is None
        extra = invariants.all_hold(world, run, whole, interrupted=(ended + proxy.lost) * 4)
        world.end_workers()
    saw("12", "sessions ended, commits and their answers lost", sessions=ended, commits=proxy.lost, extra_calls=extra)


def _state(world: Cluster, run: str) -> str:
    with contextlib.suppress(Exception):
        return world.state(run)
    return ""


@pytest.mark.parametrize("locked_s", [15.0])
def test_sqlite_is_locked_and_has_eight_writers(
    cluster: OpenCluster, bases: Bases, saw: Experiment, tmp_path: Path, locked_s: float
) -> None:
    """Row 13."""
    whole = bases.reference(LATENTS)
    path = tmp_path / "store.db"
    world = cluster(LATENTS, latency_s=0.1, store=f"sqlite:///{path}")
    run = world.submit(world.config())
    workers = [world.worker(processes=4), world.worker(processes=4)]
    world.until_calls(8)
    with sqlite3.connect(path, isolation_level=None, timeout=30) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(locked_s)
        other.execute("ROLLBACK")
    world.wait(run)
    said = "".join(worker.log for worker in workers)
    extra = invariants.all_hold(world, run, whole, interrupted=8 * 4)
    with sqlite3.connect(path) as other:
        assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    saw("13", f"SQLite locked for {locked_s:.0f} s, 8 writers", locked_errors=said.count("locked"), extra_calls=extra)


def test_a_budget_holds_for_all_processes_together(cluster: OpenCluster, saw: Experiment) -> None:
    """Row 20: 64 calls under way at once, in four processes."""
    world = cluster(300, latency_s=0.05)
    endpoint = endpoint_of(world.llm.url, max_concurrency=16, api_key_env="CHAOS_KEY")
    settings = run_settings(world.base, endpoint, chunk_latents=20)
    cap = 0.04
    config = write_config(world.folder / "run.toml", settings | {"budget": {"usd": cap}})
    run = world.submit(config)
    world.worker()
    world.worker()
    world.wait(run, "paused")
    wait_until(lambda: _rests(world, run), 60, "chunks are given back", world)
    paused = world.store.run(run)
    assert (paused.state_note or "").startswith("the budget")
    _books(world, run)
    spent = _spent(world, run)
    assert 0 < spent <= cap * 10**9
    before = world.replies()
    world.command("resume", run, "--set", "budget.usd=5")
    world.wait(run)
    invariants.one_terminal_row(world.store, run, "made-up", range(300))
    extra = invariants.few_calls_twice(world.llm.calls, 0)
    _books(world, run)
    saw(
        "20",
        f"a budget of {cap} dollars, 64 calls at once in 4 processes; then a larger one",
        spent_usd=spent / 1e9,
        calls_before=before,
        calls_after=world.replies() - before,
        extra_calls=extra,
    )


def _books(world: Cluster, run: str) -> None:
    store, calls = world.store, world.llm.calls

    def balanced() -> bool:
        with contextlib.suppress(invariants.Broken):
            invariants.books_balance(store, run)
            return True
        return False

    wait_until(balanced, 30, "the books balance", world)
    invariants.books_balance(store, run, calls)


def _rests(world: Cluster, run: str) -> bool:
    """Whether nothing was under way for two seconds: who claimed a chunk at the instant of the pause hears of it at its next heartbeat."""
    for _ in range(20):
        if world.running(run):
            return False
        time.sleep(0.1)
    return True


def _spent(world: Cluster, run: str) -> int:
    from autointerp.report.run_status import read_status

    return read_status(world.store, run).spent_nano_usd
