"""The reservoir, cleared all the time, against sorting everything at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core.partial import Firings
from sae_core.reservoir import FiringReservoir, comes_before, new_groups, ranges


def firings(seed: int, count: int, groups: int) -> Firings:
    """Random firing windows with many equal peaks; the rows spell out the window they belong to."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 4, count).astype(np.uint8)
    window = rng.permutation(10 * count)[:count].astype(np.int64)
    return Firings(
        group=rng.integers(0, groups, count).astype(np.int32),
        window=window,
        key=rng.permutation(count).astype(np.uint64),
        peak=rng.integers(0, 4, count).astype(np.float32),
        row_length=length,
        position=np.concatenate([np.arange(n) for n in length]).astype(np.uint8),
        value=np.repeat(window, length).astype(np.float32),
    )


@given(
    st.integers(0, 10**6),
    st.integers(1, 120),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 9),
)
@settings(max_examples=150, deadline=None)
def test_what_is_kept_comes_first_in_each_group(
    seed: int, count: int, groups: int, top: int, sampled: int, clear_every: int
) -> None:
    everything = firings(seed, count, groups)
    reservoir = FiringReservoir(new_groups(groups), top, sampled)
    starts = np.cumsum(everything.row_length, dtype=np.int64) - everything.row_length
    for i in range(count):
        group = reservoir.groups[everything.group[i]]
        # as the compiled loop admits
        ahead = everything.peak[i] > group["top_peak"] or (
            everything.peak[i] == group["top_peak"] and everything.key[i] <= group["top_key"]
        )
        if ahead or everything.key[i] <= group["sample_key"]:
            length = int(everything.row_length[i])
            reservoir.reserve(length)
            items, rows = (int(n) for n in reservoir.used)
            for name in ("group", "window", "key", "peak", "row_length"):
                getattr(reservoir.kept, name)[items] = getattr(everything, name)[i]
            for name in ("position", "value"):
                source = getattr(everything, name)[starts[i] : starts[i] + length]
                getattr(reservoir.kept, name)[rows : rows + length] = source
            reservoir.used += (1, length)
        if i % clear_every == 0:
            reservoir.clear()
    reservoir.clear()
    kept = reservoir.of_windows(0, 10 * count, 0)
    rows = list(zip(everything.group, -everything.peak, everything.key, everything.window, strict=True))
    expected = set()
    for g in range(groups):
        mine = sorted(r for r in rows if r[0] == g)
        expected |= {(g, r[3]) for r in mine[:top]} | {(g, r[3]) for r in sorted(mine, key=lambda r: r[2])[:sampled]}
    found = list(zip(kept.group, kept.window, strict=True))
    assert set(found) == expected
    assert len(found) == len(expected)
    assert kept.group.tolist() == sorted(kept.group.tolist())
    np.testing.assert_array_equal(kept.value, np.repeat(kept.window, kept.row_length))
    np.testing.assert_array_equal(kept.position, np.concatenate([np.arange(n) for n in kept.row_length]))
    half = reservoir.of_windows(0, 5 * count, 7)
    assert half.window.tolist() == [w for w in kept.window.tolist() if w < 5 * count]
    assert half.group.tolist() == [
        g + 7 for g, w in zip(kept.group.tolist(), kept.window, strict=True) if w < 5 * count
    ]


def test_room_grows_and_nothing_is_lost() -> None:
    reservoir = FiringReservoir(new_groups(1), 50_000, 1)
    for window in range(10_000):
        reservoir.reserve(3)
        at, row = (int(n) for n in reservoir.used)
        kept = reservoir.kept
        kept.group[at], kept.window[at], kept.key[at], kept.peak[at], kept.row_length[at] = 0, window, window, 1, 3
        kept.value[row : row + 3] = window
        kept.position[row : row + 3] = (0, 1, 2)
        reservoir.used += (1, 3)
    kept = reservoir.of_windows(0, 10_000, 0)
    assert kept.window.tolist() == list(range(10_000))
    np.testing.assert_array_equal(kept.value, np.repeat(np.arange(10_000), 3))
    assert reservoir.nbytes < 10_000 * (25 + 15) * 3


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=2))
def test_the_order_of_the_top(pair: list[tuple[int, int]]) -> None:
    (peak, key), (other_peak, other_key) = pair
    assert comes_before(peak, key, other_peak, other_key) == ((-peak, key) < (-other_peak, other_key))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5))))
def test_ranges(pairs: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array([p[i] for p in pairs], dtype=np.int64) for i in (0, 1))
    assert ranges(starts, lengths).tolist() == [i for s, n in pairs for i in range(s, s + n)]
