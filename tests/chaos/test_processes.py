"""Experiments on worker processes: killed, stopped, asked to end, older than the others."""

from __future__ import annotations

import random
import signal
import time
from itertools import pairwise

import psutil
import pytest

from autointerp.pipeline.owner import Owner
from autointerp.store import MAX_ATTEMPTS
from tests import invariants
from tests.chaos.conftest import Experiment, OpenCluster
from tests.cluster_world import LEASE_S, RECONCILE_S, UNDER_WAY, Bases, Cluster, Worker, wait_until
from tests.servers import PostgresServer

pytestmark = pytest.mark.chaos

LATENTS = 60
GRACE_S = 40.0
"""Longest that a worker may take to end; Celery's own limit is 30 s."""


@pytest.mark.timeout(1800)
def test_twenty_kills_and_a_flush_of_ten_thousand_latents(
    cluster: OpenCluster, bases: Bases, saw: Experiment, redis_url: str
) -> None:
    """Row 1."""
    import redis

    latents, kills, processes = 10_000, 20, 2
    seed = 20_260_101
    rng = random.Random(seed)
    settings = {"chunk_latents": 50}
    whole = bases.reference(latents, **settings)
    world = cluster(latents, latency_s=0.05, broker=redis_url)
    run = world.submit(world.config(**settings))
    begun, recoveries, lost = time.monotonic(), [], [0]
    worker = world.worker(processes=processes)
    for number in range(kills):
        world.until_calls(rng.randrange(250, 450))
        if number == kills // 2:
            with redis.Redis.from_url(redis_url) as client:
                client.flushall()
        worker.kill()
        time.sleep(0.2)  # the server answers what it has
        lost.append(invariants.calls_without_reply(world.store, run, world.llm.calls))
        before, killed = world.replies(), time.monotonic()
        worker = world.worker(processes=processes)
        wait_until(lambda before=before: world.replies() > before, 60, "calls after a kill", world)  # type: ignore[misc]
        recoveries.append(time.monotonic() - killed)
    world.wait(run, timeout=900)
    at_kills = [after - before for before, after in pairwise(lost)]
    assert max(at_kills) <= processes * UNDER_WAY
    extra = invariants.all_hold(world, run, whole, interrupted=sum(at_kills))
    saw(
        "1",
        f"10,000 latents, kill -9 of all processes of the worker 20 times, FLUSHALL at the tenth (seed {seed})",
        kills=kills,
        extra_calls=extra,
        under_way_at_a_kill=at_kills,
        most_at_the_server=world.llm.server.most_in_flight,
        recovery_s=recoveries,
        seconds=time.monotonic() - begun,
        **world.store.event_counts(run),
    )


@pytest.mark.timeout(900)
def test_a_kill_at_every_point(cluster: OpenCluster, bases: Bases, saw: Experiment) -> None:
    """Row 2: for n = 1, 2, 3, ...: a run whose worker dies at the n-th point, once, until n is beyond the last."""
    whole = bases.reference(3)
    points = extra = 0
    while True:
        world = cluster(3, store=f"sqlite:///{bases.fresh()}/a.db")
        run = world.submit(world.config())
        fault = {"AUTOINTERP_FAULT": f"*:*:{points + 1}"}
        code = Worker([], world.environment(fault), "tests.chaos.plain:work").wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        points += 1
        assert Worker([], world.environment(), "tests.chaos.plain:work").wait() == 0
        extra += invariants.all_hold(world, run, whole, interrupted=UNDER_WAY)
    assert points >= 20
    saw("2", "3 latents, a run for each fault point, killed there", kills=points, extra_calls=extra)


def _holder(world: Cluster, run: str, worker: Worker) -> psutil.Process:
    """The process of the pool that has a chunk of ``explain``."""
    found: list[psutil.Process] = []

    def holds() -> bool:
        pool = {process.pid: process for process in worker.pool()}
        for chunk in world.running(run, "explain"):
            owner = Owner.parse(chunk.owner)
            if owner is not None and owner.pid in pool:
                found[:] = [pool[owner.pid]]
                return True
        return False

    wait_until(holds, 60, "a process of the pool has a chunk", world)
    return found[0]


def test_one_process_of_the_pool_is_killed(cluster: OpenCluster, bases: Bases, saw: Experiment) -> None:
    """Row 3."""
    whole = bases.reference(LATENTS)
    world = cluster(LATENTS, latency_s=0.3)
    run = world.submit(world.config())
    worker = world.worker()
    _holder(world, run, worker).kill()
    world.wait(run)
    assert worker.process.poll() is None
    again = [chunk for chunk in world.store.chunks(run) if chunk.fence > 1]
    assert len(again) == 1
    assert again[0].fence == 2, "it was done again once"
    extra = invariants.all_hold(world, run, whole, interrupted=UNDER_WAY)
    saw("3", "SIGKILL to the pool's process that has a chunk", chunks_again=1, extra_calls=extra)


def test_poison_in_a_stage_that_others_wait_for(cluster: OpenCluster, saw: Experiment) -> None:
    """Row 4, the other case: without the chunk the run cannot end, so it fails and says which it is."""
    world = cluster(LATENTS)
    run = world.submit(world.config())
    worker = world.worker(hook="poison_label")
    world.wait(run, "failed")
    assert "the chunk label 1" in (world.store.run(run).state_note or "")
    poisoned = [chunk for chunk in world.store.chunks(run) if str(chunk.state) == "poisoned"]
    assert [(chunk.stage, chunk.ordinal, chunk.fence) for chunk in poisoned] == [("label", 1, MAX_ATTEMPTS)]
    assert worker.process.poll() is None
    saw("4", "the same in a stage that the run cannot do without", run="failed", deaths=MAX_ATTEMPTS)


def test_all_processes_sleep_past_their_leases(cluster: OpenCluster, bases: Bases, saw: Experiment) -> None:
    """Row 5, at whatever point: a whole worker stops in the middle of its calls, another one takes over, and it wakes."""
    whole = bases.reference(LATENTS)
    world = cluster(LATENTS, latency_s=0.3)
    run = world.submit(world.config())
    late = world.worker()
    world.until_calls(12)
    late.stop()
    held = len(world.running(run))
    world.worker()
    begun = time.monotonic()
    wait_until(lambda: world.store.event_counts(run).get("lease_expired", 0) >= held, 30, "leases run out", world)
    recovery = time.monotonic() - begun
    late.go_on()
    world.wait(run)
    extra = invariants.all_hold(world, run, whole, interrupted=2 * UNDER_WAY)
    saw(
        "5",
        "a whole worker stopped in the middle of its calls, and woken after its leases",
        extra_calls=extra,
        recovery_s=recovery,
        lease_s=LEASE_S,
        reconcile_s=RECONCILE_S,
        **world.store.event_counts(run),
    )


def test_a_chunk_slower_than_lease_and_visibility_timeout(cluster: OpenCluster, bases: Bases, saw: Experiment) -> None:
    """Row 11: the lease is renewed; the broker, told to give messages again after a second, has none to give."""
    whole = bases.reference(LATENTS)
    world = cluster(LATENTS)
    run = world.submit(world.config())
    world.worker(hook="slow_chunk", more={"CHAOS_SLOW_S": "6"})
    world.wait(run)
    chunks = world.store.chunks(run)
    assert [chunk.fence for chunk in chunks] == [1] * len(chunks)
    assert max(chunk.seconds for chunk in chunks) >= 6
    extra = invariants.all_hold(world, run, whole)
    saw("11", "a chunk of 6 s, leases of 1.5 s, visibility timeout of 1 s", claims_of_it=1, extra_calls=extra)


@pytest.mark.parametrize(
    ("signals", "clean"),
    [((signal.SIGTERM,), True), ((signal.SIGTERM, signal.SIGTERM), False), ((signal.SIGQUIT,), False)],
    ids=["term", "term-term", "quit"],
)
def test_asked_to_end_under_load(
    cluster: OpenCluster, bases: Bases, saw: Experiment, signals: tuple[signal.Signals, ...], clean: bool
) -> None:
    """Row 26."""
    whole = bases.reference(LATENTS)
    world = cluster(LATENTS, latency_s=0.3)
    run = world.submit(world.config())
    worker = world.worker()
    world.until_calls(12)
    begun = time.monotonic()
    for number in signals:
        worker.send(number)
        time.sleep(0.3)
    worker.wait(GRACE_S)
    took = time.monotonic() - begun
    left = world.running(run)
    if clean:
        assert not left, "leases are given back"
    calls = world.replies()
    world.worker()
    world.wait(run)
    extra = invariants.all_hold(world, run, whole, interrupted=0 if clean else 2 * UNDER_WAY)
    names = " and ".join(number.name for number in signals)
    saw("26", f"{names} under load", exit_s=took, leases_left=len(left), calls_before=calls, extra_calls=extra)


def test_asked_to_end_in_a_transaction(
    cluster: OpenCluster, bases: Bases, saw: Experiment, postgres_server: PostgresServer
) -> None:
    """Row 26: SIGTERM, twice, while the end of a chunk is being written, held up by a lock."""
    import psycopg

    whole = bases.reference(LATENTS)
    world = cluster(LATENTS)
    run = world.submit(world.config())
    where = world.store_url.replace("postgresql+psycopg", "postgresql")
    worker = world.worker()
    world.until_running(run, "explain")
    with psycopg.connect(where) as locking:
        locking.execute("LOCK TABLE explanation IN ACCESS EXCLUSIVE MODE")
        query = f"SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = '{where.rpartition('/')[2]}'"
        wait_until(lambda: postgres_server.execute(query)[0][0] > 0, 60, "a write waits", world)
        worker.send(signal.SIGTERM)
        time.sleep(0.5)
        worker.send(signal.SIGTERM)
        time.sleep(0.5)
        locking.rollback()
    worker.wait(GRACE_S)
    world.worker()
    world.wait(run)
    extra = invariants.all_hold(world, run, whole, interrupted=2 * UNDER_WAY)
    saw("26", "SIGTERM twice while a chunk's end is being written", extra_calls=extra)


def test_an_older_worker_beside_a_newer_one(
    cluster: OpenCluster, bases: Bases, saw: Experiment, redis_url: str
) -> None:
    """Row 32: it does not know a stage, and is sent tasks that it does not know."""
    from celery import Celery

    whole = bases.reference(LATENTS)
    world = cluster(LATENTS, latency_s=0.05, broker=redis_url)
    run = world.submit(world.config())
    older = world.worker(hook="older_worker")
    wait_until(lambda: any(c.stage == "label" for c in world.store.chunks(run)) or world.replies() > 40, 60, "", world)
    app = Celery(broker=redis_url)
    app.conf.broker_transport_options = {"global_keyprefix": "autointerp:"}
    for queue in ("llm", "control"):
        app.send_task("workers.tasks.of_tomorrow", args=("llm",), queue=queue)
    time.sleep(2)
    assert world.state(run) == "running", "a stage is open that the older one cannot do"
    world.worker()
    world.wait(run)
    assert older.process.poll() is None
    assert all(chunk.attempts == 1 for chunk in world.store.chunks(run)), "what it gave back does not count"
    extra = invariants.all_hold(world, run, whole)
    saw("32", "a worker that lacks a stage, and messages of unknown tasks", extra_calls=extra)


def test_tables_that_are_newer_than_a_worker(
    cluster: OpenCluster, bases: Bases, saw: Experiment, postgres_server: PostgresServer
) -> None:
    """Row 32: the store is upgraded in the middle of a run; who starts with old code then is refused, in a sentence."""
    whole = bases.reference(LATENTS)
    world = cluster(LATENTS, latency_s=0.2)
    run = world.submit(world.config())
    worker = world.worker()
    world.until_calls(12)
    database = world.store_url.rpartition("/")[2]
    ((revision,),) = postgres_server.execute("SELECT version_num FROM alembic_version", database)
    postgres_server.execute("UPDATE alembic_version SET version_num = '9999'", database)
    late = world.worker()
    wait_until(lambda: "written by a newer autointerp" in late.log, 30, "the late one is refused", world)
    postgres_server.execute(f"UPDATE alembic_version SET version_num = '{revision}'", database)
    late.kill()
    world.wait(run)
    assert worker.process.poll() is None
    extra = invariants.all_hold(world, run, whole)
    saw("32", "the store upgraded in the middle; workers with old code that start then refuse", extra_calls=extra)
