"""Reservoirs that merge all the time against sorting everything at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core.reservoir import FiringReservoir, Firings, PoolReservoir, PoolRows, ranges


def firings(seed: int, count: int, groups: int) -> Firings:
    """Random firing windows with many equal ranks; the rows spell out the window they belong to."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 4, count).astype(np.int32)
    window = rng.permutation(10 * count)[:count].astype(np.int64)
    return Firings(
        group=rng.integers(0, groups, count),
        window=window,
        rank=rng.integers(0, 4, count).astype(np.float32),
        key=rng.permutation(count).astype(np.uint64),
        row_length=length,
        position=np.concatenate([np.arange(n) for n in length]).astype(np.uint8),
        value=np.repeat(window, length).astype(np.float32),
    )


@given(
    st.integers(0, 10**6),
    st.integers(1, 120),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(1, 9),
)
@settings(max_examples=150, deadline=None)
def test_firing_reservoir_keeps_the_first_of_each_group(
    seed: int, count: int, groups: int, capacity: int, merge_at: int, batch: int
) -> None:
    everything = firings(seed, count, groups)
    reservoir = FiringReservoir(groups, capacity, merge_at)
    for start in range(0, count, batch):
        part = everything.take(np.arange(start, min(start + batch, count)))
        reservoir.add(part.take(np.flatnonzero(reservoir.admits(part.group, part.rank, part.key))))
    kept = reservoir.result()
    rows = list(zip(everything.group, -everything.rank, everything.key, everything.window, strict=True))
    expected = [r for g in range(groups) for r in sorted(r for r in rows if r[0] == g)[:capacity]]
    assert [(g, w) for g, _, _, w in expected] == list(zip(kept.group, kept.window, strict=True))
    np.testing.assert_array_equal(kept.value, np.repeat(kept.window, kept.row_length))
    np.testing.assert_array_equal(kept.position, np.concatenate([np.arange(n) for n in kept.row_length]))


@given(st.integers(0, 10**6), st.integers(1, 120), st.integers(1, 10), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_pool_reservoir_keeps_the_smallest_keys(seed: int, count: int, capacity: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    length = rng.integers(0, 4, count).astype(np.int32)
    window, key = np.arange(count), rng.permutation(count).astype(np.uint64)
    everything = PoolRows(
        window=window,
        key=key,
        row_length=length,
        latent=np.repeat(window, length).astype(np.int32),
        position=np.zeros(length.sum(), np.uint8),
        value=np.ones(length.sum(), np.float32),
    )
    pool = PoolReservoir(capacity)
    for start in range(0, count, batch):
        part = everything.take(np.arange(start, min(start + batch, count)))
        pool.add(part.take(np.flatnonzero(pool.admits(part.key))))
    kept = pool.result()
    assert kept.window.tolist() == np.argsort(key)[:capacity].tolist()
    np.testing.assert_array_equal(kept.latent, np.repeat(kept.window, kept.row_length))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5))))
def test_ranges(pairs: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array([p[i] for p in pairs], dtype=np.int64) for i in (0, 1))
    assert ranges(starts, lengths).tolist() == [i for s, n in pairs for i in range(s, s + n)]
