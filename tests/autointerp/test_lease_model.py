"""Everything that may happen to chunks, in any order, against a model in plain Python, on both databases.

Several workers with leases old and new, a reconciler and an operator act on two runs, on a clock that the test moves.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from autointerp.explanation import Explanation
from autointerp.store import MAX_ATTEMPTS, ChunkState, Fenced, LabelStore, Lease, NewChunk, open_store
from autointerp.store import chunks as chunk_module
from autointerp.store.chunks import Successor
from autointerp.store.models import Run
from autointerp.store.opening import sqlite_url
from autointerp.store.rows import explanation_row
from tests.servers import PostgresServer

LEASE_S = 10.0
RUNS = ("old", "new")
"""In the order in which they were made."""
CHUNKS = 2
"""Of each stage."""
FOLLOW = Successor("last", ("first", "side"), frozenset({"side"}))
"""The last stage waits for both; a poisoned chunk of ``side`` does not hold it up."""
STAGES = {"first": (2, "llm"), "side": (1, "gpu"), "last": (0, "llm")}
"""Priority and queue."""

LOOK = "SELECT run_id, stage, ordinal, state, owner, fence, attempts, lease_until, not_before FROM chunk"

OWNERS = st.sampled_from(["a", "b"])
SOME_RUN = st.sampled_from(RUNS)
SERVED = st.dictionaries(SOME_RUN, st.integers(1, 2))
SOME_CHUNK = st.tuples(SOME_RUN, st.sampled_from(sorted(STAGES)), st.integers(0, CHUNKS - 1))
Place = tuple[str, str, int]


@dataclass
class Model:
    """What a chunk should be, said plainly."""

    state: str
    owner: str = ""
    fence: int = 0
    attempts: int = 0
    until: float = 0.0
    rests_until: float = 0.0

    def let_go(self, state: str) -> None:
        self.state, self.owner, self.until = state, "", 0.0


class LeaseMachine(RuleBasedStateMachine):
    """The store and the model side by side."""

    store: ClassVar[LabelStore]
    steps: ClassVar[int] = 0
    leases = Bundle("leases")

    @initialize()
    def start(self) -> None:
        with self.store.writing() as connection:
            connection.exec_driver_sql("DELETE FROM run")
        self.model: dict[Place, Model] = {}
        self.run_state = dict.fromkeys(RUNS, "running")
        for number, run_id in enumerate(RUNS):
            run = Run(
                id=run_id,
                name="n",
                digest="d",
                ordinal=number,
                config={},
                folder="/x",
                code_version="0",
                submitted=True,
            )
            self.store.create_run(run)
            for stage, (priority, queue) in STAGES.items():
                state = ChunkState.WAITING if stage == "last" else ChunkState.READY
                new = [NewChunk(stage, queue, n, {"n": n}, state=state, priority=priority) for n in range(CHUNKS)]
                assert self.store.plan(run_id, stage, new)
                self.model |= {(run_id, stage, n): Model(state.value) for n in range(CHUNKS)}
        self.ids = {(c.run_id, c.stage, c.ordinal): c.id for run in RUNS for c in self.store.chunks(run)}
        self.place = {chunk_id: place for place, chunk_id in self.ids.items()}
        self.texts: dict[int, str] = {}
        self.expired = dict.fromkeys(RUNS, 0)
        self.now = 1000.0
        self.clock = chunk_module.database_time
        chunk_module.database_time = lambda connection: self.now

    def teardown(self) -> None:
        if hasattr(self, "clock"):
            chunk_module.database_time = self.clock

    def ours(self, lease: Lease) -> bool:
        chunk = self.model[self.place[lease.chunk_id]]
        return chunk.state == "running" and chunk.fence == lease.fence

    def taken(self, place: Place, owner: str, lease: Lease) -> Lease:
        chunk = self.model[place]
        chunk.state, chunk.owner, chunk.until = "running", owner, self.now + LEASE_S
        chunk.fence += 1
        chunk.attempts += 1
        assert (lease.run_id, lease.key.stage, lease.key.ordinal) == place
        assert (lease.fence, lease.attempts, lease.spec) == (chunk.fence, chunk.attempts, {"n": place[2]})
        return lease

    def followers(self) -> None:
        """Make ready what waits for nothing any more."""
        for (run_id, stage, ordinal), chunk in self.model.items():
            first, side = self.model[run_id, "first", ordinal].state, self.model[run_id, "side", ordinal].state
            if stage == "last" and chunk.state == "waiting" and first == "done" and side in ("done", "poisoned"):
                chunk.state = "ready"

    @rule(seconds=st.sampled_from([1.0, 9.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # workers

    @rule(target=leases, place=SOME_CHUNK, owner=OWNERS)
    def claim_one(self, place: Place, owner: str) -> Any:
        return self.claim(place, owner)

    def claim(self, place: Place, owner: str) -> Any:
        chunk = self.model[place]
        lease = self.store.claim(self.ids[place], owner, LEASE_S)
        free = chunk.state in ("ready", "running") and chunk.until < self.now and chunk.attempts < MAX_ATTEMPTS
        assert (lease is not None) == free
        return multiple() if lease is None else self.taken(place, owner, lease)

    @rule(target=leases, place=SOME_CHUNK)
    def taken_over(self, place: Place) -> Any:
        """One sleeps past its lease, and another takes the chunk: two leases of one chunk, which chance seldom makes."""
        slept = self.claim(place, "a")
        self.now += LEASE_S + 1.0
        taker = self.claim(place, "b")
        return multiple(*(lease for lease in (slept, taker) if isinstance(lease, Lease)))

    @rule(
        target=leases, queue=st.sampled_from(["llm", "gpu"]), owner=OWNERS, prefer=st.none() | SOME_RUN, served=SERVED
    )
    def claim_next(self, queue: str, owner: str, prefer: str | None, served: dict[str, int]) -> Any:
        def under_way(run_id: str) -> int:
            return sum(
                place[0] == run_id and STAGES[place[1]][1] == queue and chunk.state == "running"
                for place, chunk in self.model.items()
            )

        turns = [run_id for run_id in RUNS if self.run_state[run_id] == "running"]
        turns.sort(key=lambda run_id: (run_id != prefer, under_way(run_id), served.get(run_id, 0), RUNS.index(run_id)))
        expected: Place | None = None
        for run_id in turns:
            ready = [
                place
                for place, chunk in self.model.items()
                if place[0] == run_id and STAGES[place[1]][1] == queue and chunk.state == "ready"
                if chunk.rests_until <= self.now and chunk.attempts < MAX_ATTEMPTS
            ]
            if ready:
                expected = min(ready, key=lambda place: (STAGES[place[1]][0], place[2]))
                break
        lease = self.store.claim_next(queue, owner, LEASE_S, prefer=prefer, served=served)
        assert (None if lease is None else self.place[lease.chunk_id]) == expected
        return multiple() if lease is None or expected is None else self.taken(expected, owner, lease)

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        assert self.store.renew(lease, LEASE_S) == self.ours(lease)
        if self.ours(lease):
            self.model[self.place[lease.chunk_id]].until = self.now + LEASE_S

    @rule(lease=leases)
    def finish(self, lease: Lease) -> None:
        row = explanation_row(
            lease.run_id, "", Explanation(latent=lease.chunk_id, explainer="e", text=f"by {lease.fence}")
        )
        assert not self.store.is_finished(lease) or self.model[self.place[lease.chunk_id]].fence == lease.fence
        if not self.ours(lease):
            with pytest.raises(Fenced):
                self.store.finish(lease, [row], [FOLLOW])
            return
        self.store.finish(lease, [row], [FOLLOW])
        assert self.store.is_finished(lease)
        self.model[self.place[lease.chunk_id]].let_go("done")
        self.texts[lease.chunk_id] = f"by {lease.fence}"
        self.followers_of(lease)

    def followers_of(self, lease: Lease) -> None:
        run_id, _, ordinal = self.place[lease.chunk_id]
        first, side = self.model[run_id, "first", ordinal].state, self.model[run_id, "side", ordinal].state
        last = self.model[run_id, "last", ordinal]
        if last.state == "waiting" and first == "done" and side in ("done", "poisoned"):
            last.state = "ready"

    @rule(
        lease=consumes(leases),
        counts=st.booleans(),
        state=st.sampled_from([ChunkState.READY, ChunkState.FAILED]),
        wait_s=st.sampled_from([0.0, 5.0]),
    )
    def put_back(self, lease: Lease, counts: bool, state: ChunkState, wait_s: float) -> None:
        self.store.put_back(lease, state, "why", counts=counts, wait_s=wait_s)
        if self.ours(lease):
            chunk = self.model[self.place[lease.chunk_id]]
            chunk.let_go(state.value)
            chunk.attempts -= not counts
            chunk.rests_until = self.now + wait_s if wait_s else 0.0

    # the reconciler

    @rule(run_id=SOME_RUN)
    def owner_a_dies(self, run_id: str) -> None:
        held = [c for p, c in self.model.items() if p[0] == run_id and c.state == "running" and c.owner == "a"]
        assert self.store.free_dead(run_id, lambda owner: owner == "a") == len(held)
        for chunk in held:
            chunk.let_go("ready")

    @rule(run_id=SOME_RUN)
    def free_expired(self, run_id: str) -> None:
        late = [c for p, c in self.model.items() if p[0] == run_id and c.state == "running" and c.until < self.now]
        assert self.store.free_expired(run_id) == len(late)
        self.expired[run_id] += len(late)
        for chunk in late:
            chunk.let_go("ready")

    @rule(run_id=SOME_RUN)
    def poison(self, run_id: str) -> None:
        worn = [
            chunk
            for place, chunk in self.model.items()
            if place[0] == run_id and chunk.state in ("ready", "running")
            if chunk.until < self.now and chunk.attempts >= MAX_ATTEMPTS
        ]
        assert self.store.poison(run_id) == len(worn)
        for chunk in worn:
            chunk.let_go("poisoned")

    @rule(run_id=SOME_RUN)
    def release(self, run_id: str) -> None:
        before = {place: chunk.state for place, chunk in self.model.items()}
        self.followers()
        for place, chunk in self.model.items():  # only this run
            if place[0] != run_id:
                chunk.state = before[place]
        changed = sum(before[place] != chunk.state for place, chunk in self.model.items())
        assert self.store.release_successors(run_id, FOLLOW) == changed

    @rule(run_id=SOME_RUN, stage=st.sampled_from(sorted(STAGES)))
    def hold_back(self, run_id: str, stage: str) -> None:
        held = [c for p, c in self.model.items() if p[:2] == (run_id, stage) and c.state == "ready"]
        assert self.store.hold_back(run_id, stage, 5.0) == len(held)
        for chunk in held:
            chunk.rests_until = self.now + 5.0

    # the operator

    @rule(run_id=SOME_RUN, poisoned=st.booleans())
    def revive(self, run_id: str, poisoned: bool) -> None:
        states = [ChunkState.FAILED, *([ChunkState.POISONED] if poisoned else [])]
        back = [chunk for place, chunk in self.model.items() if place[0] == run_id and chunk.state in states]
        assert self.store.revive(run_id, states) == len(back)
        for chunk in back:
            chunk.state, chunk.attempts = "ready", 0

    @rule(run_id=SOME_RUN, state=st.sampled_from(["running", "running", "paused", "cancelled"]))
    def set_state(self, run_id: str, state: str) -> None:
        changed = self.store.set_run_state(run_id, state, unless=("cancelled",))
        assert changed == (self.run_state[run_id] != "cancelled")
        if changed:
            self.run_state[run_id] = state

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        if not hasattr(self, "clock"):
            return
        type(self).steps += 1
        with self.store.reading() as connection:
            found = connection.exec_driver_sql(LOOK).all()
            texts = connection.exec_driver_sql("SELECT latent, text FROM explanation").all()
        expected = {
            place: (c.state, c.owner, c.fence, c.attempts, c.until, c.rests_until) for place, c in self.model.items()
        }
        assert {tuple(row[:3]): tuple(row[3:]) for row in found} == expected
        assert len(texts) == len(self.texts), "one row for each that is finished"
        assert dict(tuple(row) for row in texts) == self.texts

    @invariant()
    def expiries_are_counted(self) -> None:
        if hasattr(self, "clock") and type(self).steps % 20 == 0:
            for run_id in RUNS:
                assert self.store.event_counts(run_id).get("lease_expired", 0) == self.expired[run_id]


def run_machine(url: str, examples: int, steps: int) -> int:
    """Steps that were taken."""
    store = open_store(url)
    machine = type("Machine", (LeaseMachine,), {"store": store, "steps": 0})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    )
    store.close()
    return int(machine.steps)


def sqlite_in_memory_files() -> TemporaryDirectory[str]:
    """A folder that no disk is behind, where there is one: what is tried here is not what a power cut leaves."""
    return TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


def test_leases_follow_the_model(store_url: str) -> None:
    assert run_machine(store_url, examples=12, steps=40) > 200


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_leases_follow_the_model_for_100_000_steps_on_sqlite() -> None:
    with sqlite_in_memory_files() as folder:
        assert run_machine(sqlite_url(Path(folder) / "a.db"), examples=600, steps=200) >= 100_000


@pytest.mark.long
@pytest.mark.timeout(900)
def test_leases_follow_the_model_for_20_000_steps_on_postgresql(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    assert run_machine(postgres_url, examples=150, steps=200) >= 20_000
