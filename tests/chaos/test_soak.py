"""Row 33: runs one after the other for as long as CHAOS_SOAK_S says, under random faults from a seed that is printed."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from autointerp.export.folder_swap import remove_left_behind
from autointerp.llm.server import Call
from autointerp.pipeline.folder import RunFolder
from autointerp.report.run_status import read_status
from tests import invariants
from tests.chaos.conftest import Experiment, OpenCluster
from tests.cluster_world import UNDER_WAY, Bases, Cluster, Worker, wait_until
from tests.servers import PostgresServer, RedisServer

SOAK_S = float(os.environ.get("CHAOS_SOAK_S", "120"))
SEED = int(os.environ.get("CHAOS_SOAK_SEED", "20260105"))
LONG_S = 1_800
LATENTS = 200
PROCESSES = 2

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(SOAK_S + 900)]


class Faults(threading.Thread):
    """Breaks something every few seconds; one worker of two is killed and replaced, the other one has to live through it all."""

    def __init__(self, world: Cluster, redis: RedisServer, postgres: PostgresServer, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.world, self.redis, self.postgres, self.rng = world, redis, postgres, rng
        self.ended = threading.Event()
        self.done: Counter[str] = Counter()
        self.steady = world.worker(processes=PROCESSES)
        self.victim = world.worker(processes=PROCESSES)
        self.error: BaseException | None = None

    def run(self) -> None:
        """Until ``ended``."""
        kinds = (
            "kill_worker",
            "kill_process",
            "sleep_worker",
            "flush",
            "cut_redis",
            "redis_down",
            "end_sessions",
            "postgres_down",
        )
        try:
            while not self.ended.wait(self.rng.uniform(2, 6)):
                kind = self.rng.choice(kinds)
                getattr(self, kind)()
                self.done[kind] += 1
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.error = error

    def _replace(self) -> None:
        self.world.workers.remove(self.victim)
        self.victim = self.world.worker(processes=PROCESSES)

    def kill_worker(self) -> None:
        """kill -9 of all processes, and a new worker."""
        self.victim.kill()
        self._replace()

    def kill_process(self) -> None:
        """kill -9 of one process of the pool."""
        pool = self.victim.pool()
        if pool:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.rng.choice(pool).kill()

    def sleep_worker(self) -> None:
        """A worker stops for longer than its leases."""
        self.victim.stop()
        self.ended.wait(3)
        self.victim.go_on()

    def flush(self) -> None:
        """The broker forgets everything."""
        with contextlib.suppress(Exception), self.redis.client() as client:
            client.flushall()

    def cut_redis(self) -> None:
        """All connections to the broker are cut."""
        with contextlib.suppress(Exception), self.redis.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)

    def redis_down(self) -> None:
        """The broker is away for two seconds and forgets."""
        self.redis.kill()
        self.ended.wait(2)
        self.redis.start()

    def end_sessions(self) -> None:
        """All sessions of the database are ended."""
        with contextlib.suppress(Exception):
            self.postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'autointerp'"
            )

    def postgres_down(self) -> None:
        """The database is killed, and comes back after two seconds."""
        self.postgres.kill()
        self.ended.wait(2)
        self.postgres.start()


def _size(process: psutil.Process) -> tuple[int, int]:
    return process.memory_info().rss, process.num_fds()


def _look(world: Cluster, worker: Worker, redis: RedisServer, postgres: PostgresServer) -> dict[str, float]:
    """Sizes now; what cannot be seen during an outage is left out."""
    found: dict[str, float] = {}
    with contextlib.suppress(psutil.Error, ValueError):
        sizes = [_size(process) for process in worker.group()]
        found |= {"rss": max(size[0] for size in sizes), "fds": max(size[1] for size in sizes)}
    with contextlib.suppress(Exception), redis.client() as client:
        found |= {"redis_keys": client.dbsize(), "redis_bytes": client.info("memory")["used_memory"]}
    with contextlib.suppress(Exception):
        wal = postgres.execute("SELECT coalesce(sum(size), 0) FROM pg_ls_waldir()")
        found["wal_bytes"] = float(wal[0][0])
    return found


def _slope_per_hour(samples: list[tuple[float, dict[str, float]]], name: str) -> float:
    """Of the second half: imports and caches come first."""
    values = [(at, found[name]) for at, found in samples if name in found]
    values = values[len(values) // 2 :]
    times, sizes = np.array(values).T
    return float(np.polyfit(times, sizes, 1)[0] * 3600)


def _through_outages(ask: Any) -> Any:
    for _ in range(60):
        with contextlib.suppress(Exception):
            return ask()
        time.sleep(0.5)
    return ask()


def test_faults_for_as_long_as_asked(cluster: OpenCluster, bases: Bases, saw: Experiment) -> None:
    print("seed", SEED)
    whole = bases.reference(LATENTS)
    rng = random.Random(SEED)
    with RedisServer() as redis, PostgresServer() as postgres:
        world = cluster(LATENTS, latency_s=0.1, store=postgres.new_database(), broker=redis.url)
        _ = world.store
        faults = Faults(world, redis, postgres, rng)
        faults.start()
        begun, runs, extra, samples, paid = time.monotonic(), 0, 0, [], list[Call]()
        slowest = 0.0
        while time.monotonic() - begun < SOAK_S or not runs:
            config, name = world.config(), f"run-{runs}"
            run = _through_outages(lambda config=config, name=name: world.submit(config, name))  # type: ignore[misc]
            before, started = sum(faults.done.values()), time.monotonic()
            while _through_outages(lambda run=run: world.state(run)) != "done":  # type: ignore[misc]
                assert faults.error is None, faults.error
                late = time.monotonic() - started > 240
                assert not late, (run, world.store.counts(run), faults.steady.log[-3000:])
                assert faults.steady.group(), f"the worker that nobody kills has ended: {faults.steady.log[-9000:]}"
                samples.append((time.monotonic() - begun, _look(world, faults.steady, redis, postgres)))
                time.sleep(1)
            slowest = max(slowest, time.monotonic() - started)
            met = sum(faults.done.values()) - before + 1
            allowed = met * 2 * PROCESSES * UNDER_WAY
            # a look in the middle of an outage is no look
            extra += _through_outages(lambda run=run, allowed=allowed: _checked(world, run, whole, allowed))  # type: ignore[misc]
            # a process that slept may have asked once more for the run before, so bills are compared in the end
            paid += [call for call in world.llm.calls if call.billed]
            world.llm.server.ledger.calls.clear()
            runs += 1
        faults.ended.set()
        faults.join(60)
        assert faults.error is None, faults.error
        assert faults.steady.process.poll() is None
        statuses = [read_status(world.store, run.id) for run in _through_outages(world.store.runs)]
        invariants.all_booked(sum(status.spent_tokens for status in statuses), paid)
        sizes = {
            name: samples[-1][1].get(name, 0.0) for name in ("rss", "fds", "redis_keys", "redis_bytes", "wal_bytes")
        }
        slopes = {}
        if SOAK_S >= LONG_S:  # before, contexts of as many runs as a process keeps are still being opened
            slopes = {
                "rss_mb_per_hour": _slope_per_hour(samples, "rss") / 1e6,
                "fds_per_hour": _slope_per_hour(samples, "fds"),
            }
        saw(
            "33",
            f"{SOAK_S:.0f} s of runs of {LATENTS} latents under random faults (seed {SEED})",
            runs=runs,
            slowest_run_s=slowest,
            extra_calls=extra,
            rss_mb=sizes["rss"] / 1e6,
            fds=sizes["fds"],
            **slopes,
            redis_keys=sizes["redis_keys"],
            redis_mb=sizes["redis_bytes"] / 1e6,
            wal_mb=sizes["wal_bytes"] / 1e6,
            **{f"fault_{name}": number for name, number in sorted(faults.done.items())},
        )
        assert max(found.get("redis_keys", 0) for _, found in samples) < 100
        assert sizes["fds"] < 500, "some 40 for each of the runs that a process keeps open"
        if slopes:
            assert slopes["rss_mb_per_hour"] < 50
            assert slopes["fds_per_hour"] < 20
        world.end_workers()
        world.store.close()


def _checked(world: Cluster, run: str, whole: Any, allowed: int) -> int:
    # who slept in an export that others did removes its folder when it wakes, unless it is killed then: that is for `prune`
    dictionary = RunFolder(Path(world.store.run(run).folder)).dictionary
    wait_until(
        lambda: not remove_left_behind(dictionary) and not list(dictionary.parent.glob(".dictionary.*")),
        20,
        "exports that nobody needs are gone",
    )
    try:
        return invariants.all_hold(world, run, whole, interrupted=allowed, alone=False)
    except invariants.Broken as broken:
        pytest.fail(str(broken))
