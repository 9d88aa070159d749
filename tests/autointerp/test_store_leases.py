"""Claim, renew and finish against a reference model, and against a second process."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from autointerp.explanation import Explanation
from autointerp.store import MAX_ATTEMPTS, ChunkState, Fenced, LabelStore, Lease, NewChunk, open_store
from autointerp.store import chunks as chunk_module
from autointerp.store.chunks import Successor
from autointerp.store.models import Artefact, Run
from autointerp.store.opening import sqlite_url
from autointerp.store.rows import explanation_row

LEASE_S = 10.0
CHUNKS = 3
FOLLOW = Successor("after", ("first",), frozenset())


def make_store(path: Path) -> LabelStore:
    store = open_store(sqlite_url(path))
    store.create_run(
        Run(id="r", name="n", digest="d", ordinal=1, config={}, state="running", folder="/x", code_version="0")
    )
    store.plan("r", "first", [NewChunk("first", "llm", n, {"n": n}) for n in range(CHUNKS)])
    store.plan("r", "after", [NewChunk("after", "llm", n, {"n": n}, state=ChunkState.WAITING) for n in range(CHUNKS)])
    return store


class Model:
    """What a chunk should be, said plainly."""

    def __init__(self) -> None:
        self.state = "ready"
        self.fence = self.attempts = 0
        self.until = 0.0


class LeaseMachine(RuleBasedStateMachine):
    """Several workers with leases old and new, on a clock that the machine moves."""

    leases = Bundle("leases")

    @initialize()
    def start(self) -> None:
        self.folder = TemporaryDirectory()
        self.store = make_store(Path(self.folder.name) / "a.db")
        self.now = 1000.0
        self.clock = chunk_module.database_time
        chunk_module.database_time = lambda connection: self.now
        first = [chunk for chunk in self.store.chunks("r") if chunk.stage == "first"]
        self.ids = [chunk.id for chunk in first]
        self.model = {chunk_id: Model() for chunk_id in self.ids}
        self.finished_by: dict[int, int] = {}

    def teardown(self) -> None:
        if hasattr(self, "clock"):
            chunk_module.database_time = self.clock
            self.store.close()
            self.folder.cleanup()

    def ours(self, lease: Lease) -> bool:
        chunk = self.model[lease.chunk_id]
        return chunk.state == "running" and chunk.fence == lease.fence

    @rule(seconds=st.sampled_from([1.0, 9.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=leases, number=st.integers(0, CHUNKS - 1), owner=st.sampled_from(["a", "b"]))
    def claim(self, number: int, owner: str):  # type: ignore[no-untyped-def]
        chunk = self.model[self.ids[number]]
        lease = self.store.claim(self.ids[number], owner, LEASE_S)
        free = chunk.state in ("ready", "running") and chunk.until < self.now and chunk.attempts < MAX_ATTEMPTS
        assert (lease is not None) == free
        if lease is None:
            return multiple()
        chunk.state, chunk.until = "running", self.now + LEASE_S
        chunk.fence += 1
        chunk.attempts += 1
        assert (lease.fence, lease.attempts, lease.spec) == (chunk.fence, chunk.attempts, {"n": number})
        return lease

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        assert self.store.renew(lease, LEASE_S) == self.ours(lease)
        if self.ours(lease):
            self.model[lease.chunk_id].until = self.now + LEASE_S

    @rule(lease=leases)
    def finish(self, lease: Lease) -> None:
        row = explanation_row("r", "", Explanation(latent=lease.chunk_id, explainer="e", text=f"by {lease.fence}"))
        if not self.ours(lease):
            with pytest.raises(Fenced):
                self.store.finish(lease, [row], [FOLLOW])
            return
        self.store.finish(lease, [row], [FOLLOW])
        chunk = self.model[lease.chunk_id]
        chunk.state, chunk.until = "done", 0.0
        self.finished_by[lease.chunk_id] = lease.fence

    @rule(lease=consumes(leases), counts=st.booleans(), state=st.sampled_from([ChunkState.READY, ChunkState.FAILED]))
    def put_back(self, lease: Lease, counts: bool, state: ChunkState) -> None:
        self.store.put_back(lease, state, "why", counts=counts)
        if self.ours(lease):
            chunk = self.model[lease.chunk_id]
            chunk.state, chunk.until = state.value, 0.0
            chunk.attempts -= not counts

    @rule()
    def owner_a_dies(self) -> None:
        held = [c.id for c in self.store.chunks("r", ChunkState.RUNNING) if c.owner == "a"]
        assert self.store.free_dead("r", lambda owner: owner == "a") == len(held)
        for chunk_id in held:
            self.model[chunk_id].state, self.model[chunk_id].until = "ready", 0.0

    @rule()
    def poison(self) -> None:
        self.store.poison("r")
        for chunk in self.model.values():
            if chunk.state in ("ready", "running") and chunk.until < self.now and chunk.attempts >= MAX_ATTEMPTS:
                chunk.state, chunk.until = "poisoned", 0.0

    @rule(poisoned=st.booleans())
    def revive(self, poisoned: bool) -> None:
        states = [ChunkState.FAILED, *([ChunkState.POISONED] if poisoned else [])]
        self.store.revive("r", states)
        for chunk in self.model.values():
            if chunk.state in states:
                chunk.state, chunk.attempts = "ready", 0

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        rows = {chunk.id: chunk for chunk in self.store.chunks("r")}
        for chunk_id, chunk in self.model.items():
            row = rows[chunk_id]
            assert (row.state, row.fence, row.attempts, row.lease_until) == (
                chunk.state,
                chunk.fence,
                chunk.attempts,
                chunk.until,
            )
            follower = next(c for c in rows.values() if c.stage == "after" and c.ordinal == row.ordinal)
            assert follower.state == ("ready" if chunk.state == "done" else "waiting")
        texts = {e.latent: e.text for e in self.store.explanations("r", "")}
        assert texts == {chunk_id: f"by {fence}" for chunk_id, fence in self.finished_by.items()}


TestLeases = LeaseMachine.TestCase
TestLeases.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)


def _claim_all(path: str, owner: str, barrier: object, won: object) -> None:
    store = open_store(sqlite_url(Path(path)))
    barrier.wait()  # type: ignore[attr-defined]
    for chunk in range(1, 41):
        if store.claim(chunk, owner, 60.0) is not None:
            won.put((chunk, owner))  # type: ignore[attr-defined]


def test_two_processes_claim_the_same_chunks_and_each_has_one_winner(tmp_path: Path) -> None:
    store = open_store(sqlite_url(tmp_path / "a.db"))
    store.create_run(
        Run(id="r", name="n", digest="d", ordinal=1, config={}, state="running", folder="/x", code_version="0")
    )
    store.plan("r", "first", [NewChunk("first", "llm", n, {}) for n in range(40)])
    context = multiprocessing.get_context("spawn")
    barrier, won = context.Barrier(2), context.Queue()
    path = str(tmp_path / "a.db")
    workers = [context.Process(target=_claim_all, args=(path, owner, barrier, won)) for owner in ("a", "b")]
    for worker in workers:
        worker.start()
    winners = dict(won.get(timeout=60) for _ in range(40))
    for worker in workers:
        worker.join(timeout=60)
    assert won.empty()
    rows = {chunk.id: chunk for chunk in store.chunks("r")}
    assert {chunk_id: row.owner for chunk_id, row in rows.items()} == winners
    assert {row.fence for row in rows.values()} == {1}


def test_rows_that_do_not_fit_leave_the_chunk_as_it_was(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.db")
    lease = store.claim(1, "a", 60.0)
    assert lease is not None
    twice = [Artefact(run_id="r", kind="k", version=1, value={}) for _ in range(2)]
    with pytest.raises(Exception, match="UNIQUE"):
        store.finish(lease, twice, [FOLLOW])
    assert store.artefact("r", "k") is None
    assert {c.state for c in store.chunks("r") if c.ordinal == 0} == {"running", "waiting"}
    store.finish(lease, twice[:0], [FOLLOW])
    assert {c.state for c in store.chunks("r") if c.ordinal == 0} == {"done", "ready"}


def test_a_stage_is_planned_once(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.db")
    assert store.plan("r", "empty", []) is True
    assert store.plan("r", "empty", [NewChunk("empty", "llm", 0, {})]) is False
    assert store.planned("r") == {"plan/first", "plan/after", "plan/empty"}
    assert len(store.chunks("r")) == 2 * CHUNKS


def test_a_late_write_is_refused_while_the_chunk_runs_elsewhere(tmp_path: Path) -> None:
    """The old holder's rows must not enter, nor end the chunk, though it is running: only the fence tells."""
    store = make_store(tmp_path / "a.db")
    late = store.claim(1, "a", 0.01)
    time.sleep(0.05)
    now = store.claim(1, "b", 60.0)
    assert late is not None
    assert now is not None
    assert now.fence == late.fence + 1
    row = explanation_row("r", "s", Explanation(latent=1, explainer="x", text="late"))
    with pytest.raises(Fenced):
        store.finish(late, [row], [FOLLOW], 1, 1.0)
    assert not store.renew(late, 60.0)
    assert store.explanations("r", "s") == []
    assert [chunk.id for chunk in store.chunks("r", ChunkState.RUNNING)] == [1]
    store.finish(now, [], [FOLLOW], 1, 1.0)
    assert [chunk.id for chunk in store.chunks("r", ChunkState.DONE)] == [1]
