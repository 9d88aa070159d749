"""Experiments of seconds: kills, poison, late writers, lost and doubled hints, wrong clocks, doubled submissions."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from autointerp.store import MAX_ATTEMPTS
from sae_core.errors import StoreError
from tests import invariants
from tests.chaos.conftest import Experiment, OpenCluster
from tests.cluster_world import LEASE_S, RECONCILE_S, SECRET, UNDER_WAY, Bases, Worker, wait_until

LATENTS = 60
"""Of the smaller experiments: six chunks a stage."""


def test_three_kills_of_all_processes_change_nothing(cluster: OpenCluster, bases: Bases, saw: Experiment) -> None:
    """Row 1 in short."""
    whole = bases.reference(300)
    world = cluster(300, latency_s=0.1)
    run = world.submit(world.config())
    recoveries, lost = [], [0]
    worker = world.worker()
    for _ in range(3):
        world.until_calls(25)
        worker.kill()
        time.sleep(0.2)  # the server answers what it has
        lost.append(invariants.calls_without_reply(world.store, run, world.llm.calls))
        before, begun = world.replies(), time.monotonic()
        worker = world.worker()
        wait_until(lambda before=before: world.replies() > before, 60, "calls after a kill", world)  # type: ignore[misc]
        recoveries.append(time.monotonic() - begun)
    world.wait(run)
    at_kills = [after - before for before, after in pairwise(lost)]
    assert max(at_kills) <= 2 * UNDER_WAY
    extra = invariants.all_hold(world, run, whole, interrupted=sum(at_kills))
    saw(
        "1",
        "300 latents, kill -9 of all processes of the worker, three times",
        kills=3,
        extra_calls=extra,
        under_way_at_a_kill=at_kills,
        most_at_the_server=world.llm.server.most_in_flight,
        recovery_s=recoveries,
    )


@pytest.mark.long
def test_a_kill_while_the_endpoint_is_probed(cluster: OpenCluster, bases: Bases, saw: Experiment) -> None:
    """Row 1: the few calls that find out what a server can do are paid too."""
    whole = bases.reference(3)
    world = cluster(3, latency_s=0.3)
    run = world.submit(world.config())
    for _ in range(2):
        worker, before = world.worker(), len(world.llm.calls)
        wait_until(lambda before=before: len(world.llm.calls) > before + 2, 60, "probes", world)  # type: ignore[misc]
        worker.kill()
        assert not any(invariants.is_work(call) for call in world.llm.calls), "it was killed in time"
    probes = len(world.llm.calls)
    world.worker()
    world.wait(run)
    extra = invariants.all_hold(world, run, whole)
    saw("1", "kill -9 while the endpoint is probed, twice", kills=2, probes_before=probes, extra_calls=extra)


@pytest.mark.long
def test_a_kill_at_each_next_point(cluster: OpenCluster, bases: Bases, saw: Experiment) -> None:
    """Row 2 in one run: the n-th process dies at the n-th fault point that it passes, until one of them lives."""
    whole = bases.reference(3)
    world = cluster(3)
    run = world.submit(world.config())
    deaths = 0
    while True:
        worker = Worker([], world.environment({"AUTOINTERP_FAULT": f"*:*:{deaths + 1}"}), "tests.chaos.plain:work")
        if (code := worker.wait()) == 0:
            break
        assert code == -9, worker.log
        deaths += 1
        assert deaths < 100
    extra = invariants.all_hold(world, run, whole, interrupted=deaths * UNDER_WAY)
    assert deaths >= 8, "as many points as a run of three latents has at least"
    saw(
        "2",
        "3 latents in one run, the n-th process killed at the n-th point it passes",
        kills=deaths,
        extra_calls=extra,
    )


@pytest.mark.long
def test_a_chunk_that_kills_whoever_has_it(cluster: OpenCluster, saw: Experiment) -> None:
    """Row 4."""
    world = cluster(LATENTS)
    run = world.submit(world.config())
    worker = world.worker(hook="poison_explain")
    main = worker.pid
    world.wait(run)
    assert worker.process.poll() is None, "the worker itself lives on"
    assert worker.pid == main
    chunks = {(chunk.stage, chunk.ordinal): chunk for chunk in world.store.chunks(run)}
    poisoned = [key for key, chunk in chunks.items() if str(chunk.state) == "poisoned"]
    assert poisoned == [("explain", 1)]
    assert chunks["explain", 1].fence == MAX_ATTEMPTS, "claims of it, each of which was a death"
    labels = world.store.labels(run, "made-up")
    failed = {label.latent: label.failure_kind for label in labels if label.status == "failed"}
    assert sorted(failed) == list(range(10, 20))
    assert all(failed.values()), "typed"
    invariants.one_terminal_row(world.store, run, "made-up", range(LATENTS), poisoned=failed)
    invariants.nothing_left(world.store, run, Path(world.store.run(run).folder))
    extra = invariants.few_calls_twice(world.llm.calls, 0)
    saw(
        "4",
        "one chunk always kills its process",
        deaths=MAX_ATTEMPTS,
        chunks_poisoned=1,
        latents_failed=len(failed),
        latents_labelled=LATENTS - len(failed),
        extra_calls=extra,
    )


def test_a_process_that_wakes_after_its_lease(
    cluster: OpenCluster, bases: Bases, saw: Experiment, tmp_path: Path
) -> None:
    """Row 5: it stops with all done and nothing written, another one does the chunk, it wakes and writes."""
    whole = bases.reference(LATENTS)
    world = cluster(LATENTS)
    run = world.submit(world.config())
    mark = tmp_path / "stopped"
    late = world.worker(processes=1, hook="stop_before_write", more={"CHAOS_MARK": str(mark)})
    wait_until(mark.exists, 60, "the process stops", world)
    begun = time.monotonic()
    other = world.worker(processes=1)
    done = world.wait(run, timeout=90)
    assert time.monotonic() - begun < LEASE_S + 60
    before = {name: invariants.rows_of(world.store, run, name) for name in ("explanation", "label")}
    assert world.store.event_counts(run).get("fenced", 0) == 0
    late.go_on()
    wait_until(lambda: world.store.event_counts(run).get("fenced", 0) == 1, 30, "the late write is fenced off", world)
    assert before == {name: invariants.rows_of(world.store, run, name) for name in before}
    invariants.all_hold(world, run, whole)
    events = world.store.event_counts(run)
    saw("5", "a process stopped (SIGSTOP) before its write, and woke when the run was done", **events, done_s=done)
    assert other.process.poll() is None


def test_a_flushed_broker(cluster: OpenCluster, bases: Bases, saw: Experiment, redis_server: object) -> None:
    """Row 6, FLUSHALL."""
    from tests.servers import RedisServer

    assert isinstance(redis_server, RedisServer)
    whole = bases.reference(LATENTS)
    world = cluster(LATENTS, latency_s=0.1)
    run = world.submit(world.config())
    world.worker()
    world.until_calls(12)
    with redis_server.client() as client:
        client.flushall()
    begun = time.monotonic()
    world.wait(run)
    extra = invariants.all_hold(world, run, whole)
    saw("6", "FLUSHALL in the middle", extra_calls=extra, done_after_s=time.monotonic() - begun)


def test_a_hint_lost_on_its_way(cluster: OpenCluster, bases: Bases, saw: Experiment, redis_url: str) -> None:
    """Row 9: the main process stands still, its socket takes the hints, and it is killed with them."""
    import redis

    whole = bases.reference(LATENTS)
    world = cluster(LATENTS, broker=redis_url)
    lost = world.worker(queues="gpu,llm,export", processes=1)
    wait_until(lambda: bool(world.store.live_workers()), 60, "the worker is there", world)
    with redis.Redis.from_url(redis_url) as client:
        wait_until(lambda: bool(client.client_list(_type="normal")), 30, "it is connected", world)
        time.sleep(0.5)
        lost.send(19)  # SIGSTOP to the main process
        run = world.submit(world.config())
        control = world.worker(queues="control", processes=1)
        wait_until(lambda: bool(world.store.chunks(run)), 60, "the run is planned", world)
        time.sleep(4 * RECONCILE_S)
        lost.kill()
        waiting = sum(client.llen(f"autointerp:{queue}") for queue in ("gpu", "llm", "export"))
    begun = time.monotonic()
    world.worker(queues="gpu,llm,export", processes=1)
    wait_until(lambda: world.replies() > 0, 60, "the run goes on", world)
    recovery = time.monotonic() - begun
    world.wait(run)
    assert control.process.poll() is None
    extra = invariants.all_hold(world, run, whole, interrupted=UNDER_WAY)
    saw(
        "9",
        "a worker stopped, hinted and killed, so that hints are lost in its socket",
        hints_left=waiting,
        recovery_s=recovery,
        extra_calls=extra,
    )


def test_hints_ten_times_and_shuffled(cluster: OpenCluster, bases: Bases, saw: Experiment, redis_url: str) -> None:
    """Row 10."""
    import redis

    whole = bases.reference(LATENTS)
    world = cluster(LATENTS, latency_s=0.05, broker=redis_url)
    run = world.submit(world.config())
    world.worker()
    rng, doubled = random.Random(10), 0
    with redis.Redis.from_url(redis_url) as client:
        while world.state(run) == "running" and doubled < 400:
            for queue in ("llm", "export", "gpu"):
                waiting = client.lrange(f"autointerp:{queue}", 0, -1)
                copies = [_with_own_tag(message, rng) for message in waiting for _ in range(9)]
                rng.shuffle(copies)
                if copies:
                    client.lpush(f"autointerp:{queue}", *copies)
                    doubled += len(copies)
            time.sleep(0.1)
    world.wait(run)
    chunks = world.store.chunks(run)
    assert doubled >= 9
    assert [chunk.fence for chunk in chunks] == [1] * len(chunks), "each chunk was claimed once"
    extra = invariants.all_hold(world, run, whole)
    saw("10", "every waiting hint doubled nine times, shuffled", doubled=doubled, chunks=len(chunks), extra_calls=extra)


def _with_own_tag(message: bytes, rng: random.Random) -> str:
    """A copy of a message that Redis' side of Celery takes for another one."""
    body = json.loads(message)
    body["properties"]["delivery_tag"] = f"copy-{rng.getrandbits(64):x}"
    return json.dumps(body)


def test_a_clock_ten_minutes_wrong_that_jumps(cluster: OpenCluster, bases: Bases, saw: Experiment) -> None:
    """Row 28: one worker is ten minutes ahead and later ten behind; leases go by the database's clock."""
    whole = bases.reference(LATENTS)
    world = cluster(LATENTS, latency_s=0.1)
    run = world.submit(world.config())
    world.worker(processes=1, hook="shifted_clock", more={"CHAOS_SKEW_S": "600"})
    world.worker(processes=1)
    world.wait(run)
    events = world.store.event_counts(run)
    chunks = world.store.chunks(run)
    assert [chunk.fence for chunk in chunks] == [1] * len(chunks), "no lease was taken for expired"
    extra = invariants.all_hold(world, run, whole)
    saw("28", "one of two workers ten minutes ahead, then ten behind", extra_calls=extra, **events)


def test_fifty_submissions_at_once_are_one_run(cluster: OpenCluster, saw: Experiment) -> None:
    """Row 29."""
    world = cluster(3)
    config, other = world.config(), world.config("other", latents=2)

    def submit(number: int) -> str:
        return world.submit(config, name=f"place-{number % 5}", key="the same")

    begun = time.monotonic()
    with ThreadPoolExecutor(50) as pool:
        runs = set(pool.map(submit, range(50)))
    assert len(runs) == 1
    assert [run.id for run in world.store.runs()] == list(runs)
    with pytest.raises(StoreError, match="do not belong together"):
        world.submit(other, name="elsewhere", key="the same")
    assert len(world.store.runs()) == 1
    assert SECRET not in repr([world.store.run(run).config for run in runs])
    saw(
        "29",
        "50 submissions at once with one key, and one of another configuration",
        runs=1,
        refused=1,
        seconds=time.monotonic() - begun,
    )
