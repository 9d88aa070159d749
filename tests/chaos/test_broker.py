"""Experiments on Redis: it restarts with and without its data, goes away, and loses connections."""

from __future__ import annotations

import random
import threading
import time

import pytest
from celery import Celery

from tests import invariants
from tests.chaos.conftest import Experiment, OpenCluster
from tests.cluster_world import Bases, wait_until
from tests.servers import RedisServer

pytestmark = pytest.mark.chaos

LATENTS = 60


@pytest.mark.parametrize("appendonly", [True, False], ids=["aof", "no-aof"])
def test_redis_is_killed_and_comes_back(cluster: OpenCluster, bases: Bases, saw: Experiment, appendonly: bool) -> None:
    """Row 6."""
    whole = bases.reference(LATENTS)
    with RedisServer(appendonly=appendonly) as redis:
        world = cluster(LATENTS, latency_s=0.3, broker=redis.url)
        run = world.submit(world.config())
        worker = world.worker()
        world.until_calls(12)
        redis.kill()
        time.sleep(1)
        redis.start()
        begun = time.monotonic()
        world.wait(run)
        assert worker.process.poll() is None, "the worker connects again by itself"
        extra = invariants.all_hold(world, run, whole)
        world.end_workers()
    kept = "with" if appendonly else "without"
    saw("6", f"Redis killed and started again, {kept} AOF", extra_calls=extra, done_after_s=time.monotonic() - begun)


def test_redis_goes_again_and_again_while_hints_wait_in_workers(
    cluster: OpenCluster, bases: Bases, saw: Experiment
) -> None:
    """Row 6: a worker that has taken more hints than it has processes lives through each loss of the broker."""
    outages, rng = 12, random.Random(6)
    whole = bases.reference(LATENTS)
    with RedisServer() as redis:
        world = cluster(LATENTS, latency_s=2.0, broker=redis.url)
        run = world.submit(world.config())
        worker = world.worker(processes=1)
        world.until_calls(2)
        hints = Celery(broker=redis.url)
        hints.conf.broker_transport_options = {"global_keyprefix": "autointerp:"}
        for number in range(outages):
            for _ in range(6):  # as many as the worker takes, and more
                hints.send_task("workers.tasks.work", ("llm",), queue="llm")
            time.sleep(rng.uniform(0.2, 0.8))
            redis.kill()
            time.sleep(rng.uniform(0.1, 1.5))
            redis.start()
            time.sleep(rng.uniform(0.5, 3))
            assert worker.process.poll() is None, f"after loss {number + 1}: {worker.log[-3000:]}"
        world.wait(run)
        extra = invariants.all_hold(world, run, whole)
        world.end_workers()
    saw("6", f"Redis killed {outages} times while hints wait in a worker", processes_that_died=0, extra_calls=extra)


@pytest.mark.parametrize("away_s", [60.0])
def test_redis_is_away_and_runs_are_submitted(
    cluster: OpenCluster, bases: Bases, saw: Experiment, away_s: float
) -> None:
    """Row 7: who submits needs no broker; workers need no new start."""
    whole = bases.reference(LATENTS)
    with RedisServer() as redis:
        world = cluster(LATENTS, latency_s=0.2, broker=redis.url)
        first = world.submit(world.config())
        worker = world.worker()
        world.until_calls(12)
        redis.kill()
        begun = time.monotonic()
        said = world.command("submit", str(world.config("second", latents=30)), "--out", str(world.folder / "second"))
        took = time.monotonic() - begun
        time.sleep(max(0.0, away_s - took))
        redis.start()
        back = time.monotonic()
        second = said.split()[1]
        assert {run.id for run in world.store.runs()} == {first, second}
        world.wait(first)
        world.wait(second)
        assert worker.process.poll() is None
        seconds = time.monotonic() - back
        calls = world.llm.calls  # of both runs: the first's requests are its own
        invariants.one_terminal_row(world.store, second, "made-up", range(30))
        assert invariants.calls_twice(calls) <= 30, "the second run asks its own"
        invariants.equal_to(world.store, first, world.folder / "run", whole)
        for run in (first, second):
            invariants.books_balance(world.store, run)
            invariants.nothing_left(world.store, run, world.folder)
        world.end_workers()
    saw("7", f"Redis away for {away_s:.0f} s, a run submitted meanwhile", submitted_in_s=took, done_after_s=seconds)


def test_connections_are_cut_again_and_again(
    cluster: OpenCluster, bases: Bases, saw: Experiment, redis_url: str
) -> None:
    """Row 8: CLIENT KILL of all connections every second."""
    import redis

    whole = bases.reference(LATENTS)
    world = cluster(LATENTS, latency_s=0.4, broker=redis_url)
    run = world.submit(world.config())
    worker = world.worker()
    world.until_calls(6)
    ended, cut = threading.Event(), []
    with redis.Redis.from_url(redis_url) as client:

        def cutting() -> None:
            while not ended.wait(1.0):
                cut.append(client.client_kill_filter(_type="normal", skipme=True))

        thread = threading.Thread(target=cutting)
        thread.start()
        try:
            wait_until(lambda: len(cut) >= 5, 60, "connections are cut", world)
        finally:
            ended.set()
            thread.join()
    world.wait(run)
    assert sum(cut) > 5
    assert worker.process.poll() is None
    extra = invariants.all_hold(world, run, whole)
    saw("8", "CLIENT KILL of all connections every second", connections_cut=sum(cut), extra_calls=extra)
