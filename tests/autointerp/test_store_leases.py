"""Claim, renew and finish: races of processes, rows that do not fit, a late write. The reference model is test_lease_model.py's."""

from __future__ import annotations

import multiprocessing
import time

import pytest
from sqlalchemy import update

from autointerp.explanation import Explanation
from autointerp.store import ChunkState, Fenced, LabelStore, NewChunk, open_store
from autointerp.store.chunks import Successor
from autointerp.store.models import Artefact, Run
from autointerp.store.rows import explanation_row
from tests.autointerp.scripted_server import add_run

CHUNKS = 3
FOLLOW = Successor("after", ("first",), frozenset())


@pytest.fixture
def store(label_store: LabelStore) -> LabelStore:
    add_run(label_store, "r")
    label_store.plan("r", "first", [NewChunk("first", "llm", n, {"n": n}) for n in range(CHUNKS)])
    after = [NewChunk("after", "llm", n, {"n": n}, state=ChunkState.WAITING) for n in range(CHUNKS)]
    label_store.plan("r", "after", after)
    return label_store


def _claim_all(url: str, owner: str, barrier: object, won: object) -> None:
    store = open_store(url)
    barrier.wait()  # type: ignore[attr-defined]
    for chunk in range(1, 41):
        if store.claim(chunk, owner, 60.0) is not None:
            won.put((chunk, owner))  # type: ignore[attr-defined]


def _claim_next_all(url: str, owner: str, barrier: object, won: object) -> None:
    store = open_store(url)
    barrier.wait()  # type: ignore[attr-defined]
    while (lease := store.claim_next("llm", owner, 60.0)) is not None:
        won.put((lease.chunk_id, owner))  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", [_claim_all, _claim_next_all])
def test_two_processes_claim_the_same_chunks_and_each_has_one_winner(
    label_store: LabelStore, store_url: str, way: object
) -> None:
    store = label_store
    add_run(store, "r")
    with store.writing() as connection:
        connection.execute(update(Run).values(submitted=True))
    store.plan("r", "first", [NewChunk("first", "llm", n, {}) for n in range(40)])
    context = multiprocessing.get_context("spawn")
    barrier, won = context.Barrier(2), context.Queue()
    workers = [context.Process(target=way, args=(store_url, owner, barrier, won)) for owner in ("a", "b")]  # type: ignore[arg-type]
    for worker in workers:
        worker.start()
    winners = dict(won.get(timeout=60) for _ in range(40))
    for worker in workers:
        worker.join(timeout=60)
    assert won.empty()
    rows = {chunk.id: chunk for chunk in store.chunks("r")}
    assert {chunk_id: row.owner for chunk_id, row in rows.items()} == winners
    assert {row.fence for row in rows.values()} == {1}


def test_rows_that_do_not_fit_leave_the_chunk_as_it_was(store: LabelStore) -> None:
    lease = store.claim(1, "a", 60.0)
    assert lease is not None
    twice = [Artefact(run_id="r", kind="k", version=1, value={}) for _ in range(2)]
    with pytest.raises(Exception, match=r"(?i)unique"):
        store.finish(lease, twice, [FOLLOW])
    assert store.artefact("r", "k") is None
    assert {c.state for c in store.chunks("r") if c.ordinal == 0} == {"running", "waiting"}
    store.finish(lease, twice[:0], [FOLLOW])
    assert {c.state for c in store.chunks("r") if c.ordinal == 0} == {"done", "ready"}


def test_a_stage_is_planned_once(store: LabelStore) -> None:
    assert store.plan("r", "empty", []) is True
    assert store.plan("r", "empty", [NewChunk("empty", "llm", 0, {})]) is False
    assert store.planned("r") == {"plan/first", "plan/after", "plan/empty"}
    assert len(store.chunks("r")) == 2 * CHUNKS


def test_a_late_write_is_refused_while_the_chunk_runs_elsewhere(store: LabelStore) -> None:
    """The old holder's rows must not enter, nor end the chunk, though it is running: only the fence tells."""
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
