"""Samples of windows against brute force, window by window, and against what uniform draws look like."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from autointerp.evidence import LatentEvidence
from autointerp.sampling import (
    SILENT_STRATA,
    ShownWindow,
    SilentStrata,
    Stratum,
    allocate,
    most_fired_token,
    sample_firing,
    sample_silent,
    silent_strata,
    uniform_counts,
)
from autointerp.sampling.natural import firing_rate
from sae_core.lens_evidence import LensEvidence
from sae_core.records import Exemplar, Origin, Side, WindowPool
from tests.autointerp.pools import HandStore, Rule, letters, make_pool

WORDS = ["<bos>", " a", " b", " c", " d", " e"]
WINDOW = 16


def lens_of(neighbours: list[list[int]]) -> LensEvidence:
    rows = np.asarray(neighbours, dtype=np.int32)
    zeros = np.zeros(rows.shape, dtype=np.float32)
    return LensEvidence(rows, zeros, rows, zeros, rows, zeros)


def after(token: int, before: int, value: float = 1.0) -> Rule:
    return lambda context, at: value if (context[at], context[at - 1]) == (token, before) else 0.0


RULES: list[Rule] = [
    after(1, 2),
    after(3, 3, -2.0),
    lambda context, at: 0.5 * (context[at] == 5),
    lambda context, at: 0.0,
]
"""Latent 1 has negative activations only, latent 3 never fires."""


def random_contexts(rng: np.random.Generator, count: int, copied_from: list[list[int]]) -> list[list[int]]:
    """Contexts of random tokens; some repeat 10 to 20 tokens of another list's."""
    out = []
    for _ in range(count):
        context = [
            0,
            *(int(t) for t in rng.choice([1, 2, 3, 4, 5], int(rng.integers(1, 60)), p=[0.2, 0.2, 0.2, 0.35, 0.05])),
        ]
        if copied_from and rng.random() < 0.4:
            source = copied_from[int(rng.integers(len(copied_from)))]
            length = int(rng.integers(10, 21))
            start = int(rng.integers(max(1, len(source) - length)))
            context += source[start : start + length]
        out.append(context)
    return out


def world(seed: int) -> tuple[HandStore, dict[Side, list[list[int]]]]:
    rng = np.random.default_rng(seed)
    explain = random_contexts(rng, 6, [])
    texts = {Side.EXPLAIN: explain, Side.CHOOSE: random_contexts(rng, 4, explain)}
    texts[Side.SCORE] = random_contexts(rng, 8, explain)
    pools = {
        side: make_pool(side, rows, [100 * int(side) + i // 2 for i in range(len(rows))], RULES, WINDOW, before=8)
        for side, rows in texts.items()
    }
    return HandStore(pools, letters(WORDS)), texts


def held_back_by(pool: WindowPool, row: int) -> set[tuple[int, ...]]:
    """Runs of a window by which it is held back; of a short one that which ends with it."""
    own = own_tokens(pool, row)
    return runs(own) or runs([int(t) for t in pool.tokens[row] if t >= 0][-13:])


def runs(tokens: list[int]) -> set[tuple[int, ...]]:
    return {tuple(tokens[i : i + 13]) for i in range(len(tokens) - 12)}


def own_tokens(pool: WindowPool, row: int) -> list[int]:
    return [int(t) for t in pool.tokens[row, pool.first_token[row] :] if t >= 0]


def activations(pool: WindowPool, row: int, latent: int) -> list[float]:
    window, _, value = pool.activations(latent)
    return [float(v) for w, v in zip(window, value, strict=True) if w == row]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3), st.sampled_from([Side.CHOOSE, Side.SCORE]), st.booleans())
def test_strata_are_the_partition_that_brute_force_finds(seed: int, latent: int, side: Side, with_lens: bool) -> None:
    store, texts = world(seed)
    pool = store.pool(side)
    rng = np.random.default_rng(seed)
    seen = frozenset((int(pool.context[r]), int(pool.position[r])) for r in rng.integers(0, len(pool.tokens), 2))
    lens = lens_of([[1, -1], [0, 2], [3, 1], [-1, -1]]) if with_lens else None
    evidence = LatentEvidence(latent, store, lens=lens, scored_side=side, excluded=seen)
    near = {int(r) for r in rng.integers(0, len(pool.tokens), 5)}
    strata = silent_strata(evidence, side, near=lambda _, rows: np.isin(rows, sorted(near)))

    # a window of the explain pool is seen with the 8 tokens before it
    shown = set().union(*(runs(text[max(0, at - 8) : at + WINDOW]) for text in texts[Side.EXPLAIN] for at in range(0, len(text), WINDOW)))  # fmt: skip
    explain = store.pool(Side.EXPLAIN)
    fired = Counter(int(explain.tokens[w, c]) for w, c, _ in zip(*explain.activations(latent), strict=True))
    top = max(fired, key=lambda t: (fired[t], -t)) if fired else None
    neighbours = [n for n in (lens.neighbours[latent] if lens else []) if n >= 0]
    expected: dict[Stratum, list[int]] = {stratum: [] for stratum in SILENT_STRATA}
    firing, skipped = 0, 0
    for row in range(len(pool.tokens)):
        place = (int(pool.context[row]), int(pool.position[row]))
        if place in seen or held_back_by(pool, row) & shown:
            skipped += 1
        elif activations(pool, row, latent):
            firing += 1
        elif any(activations(pool, row, int(n)) for n in neighbours):
            expected[Stratum.NEIGHBOUR].append(row)
        elif top in own_tokens(pool, row):
            expected[Stratum.TOKEN].append(row)
        elif row in near:
            expected[Stratum.NEAR].append(row)
        else:
            expected[Stratum.BULK].append(row)
    assert {stratum: rows.tolist() for stratum, rows in strata.rows.items()} == expected
    assert strata.num_firing == firing
    assert strata.share_skipped == pytest.approx(skipped / len(pool.tokens))
    assert firing + strata.num_silent + skipped == len(pool.tokens)
    if strata.num_silent:
        assert sum(strata.weights.values()) == pytest.approx(1)
        assert strata.weights[Stratum.BULK] == len(expected[Stratum.BULK]) / strata.num_silent
    else:
        assert strata.weights == {}

    # what is drawn of it is silent, from its stratum, and never what was shown or seen
    drawn = sample_silent(strata, evidence, dict.fromkeys(SILENT_STRATA, 3), seed)
    assert Counter(w.stratum for w in drawn) == {s: min(3, len(r)) for s, r in expected.items() if r}
    found = [*drawn, *sample_firing(evidence, side, 5, seed)]
    assert len(found) == len({w.place for w in found})
    rows_by_place = {(int(c), int(p)): r for r, (c, p) in enumerate(zip(pool.context, pool.position, strict=True))}
    for window in found:
        row = rows_by_place[window.place]
        assert window.token_ids.tolist() == own_tokens(pool, row)
        assert window.fires == bool(activations(pool, row, latent)) == (window.stratum is Stratum.FIRING)
        assert window.place not in seen
        assert not held_back_by(pool, row) & shown
        assert window.activations[window.firing_positions].tolist() == activations(pool, row, latent)
    assert sum(w.fires for w in found) == min(5, firing)


def test_explain_side_is_sampled_whole() -> None:
    """Explainers draw hard negatives there, and nothing of it repeats what is shown but itself."""
    store, _ = world(1)
    strata = silent_strata(LatentEvidence(0, store), Side.EXPLAIN)
    assert strata.share_skipped == 0
    assert strata.num_firing + strata.num_silent == len(store.pool(Side.EXPLAIN).tokens)


def flat_store(num_windows: int, firing: int) -> HandStore:
    """One window a context; latent 0 fires in the first ``firing`` of them, on token 5."""
    rng = np.random.default_rng(0)
    contexts = [[0, *(int(t) for t in rng.integers(1, 5, 12)), 5 if i < firing else 4] for i in range(num_windows)]
    score = make_pool(Side.SCORE, contexts, list(range(num_windows)), [RULES[2]], WINDOW)
    explain = make_pool(Side.EXPLAIN, [[0, 5]], [999], [RULES[2]], WINDOW)
    return HandStore({Side.SCORE: score, Side.EXPLAIN: explain}, letters(WORDS))


def uniform(counts: Counter[int], among: int, draws: int) -> bool:
    """Whether windows came up as often as uniform draws without replacement let them (a false alarm in 1 of 1,000)."""
    assert sum(counts.values()) == draws
    return bool(chisquare([counts[i] for i in range(among)]).pvalue > 1e-3)


def test_firing_and_silent_windows_are_drawn_uniformly() -> None:
    evidence = LatentEvidence(0, flat_store(100, 40))
    strata = silent_strata(evidence, Side.SCORE)
    assert strata.counts[Stratum.BULK] == 60
    firing, silent = Counter[int](), Counter[int]()
    for seed in range(600):
        firing.update(w.context for w in sample_firing(evidence, Side.SCORE, 8, seed))
        silent.update(w.context - 40 for w in sample_silent(strata, evidence, {Stratum.BULK: 9}, seed))
    assert uniform(firing, 40, 600 * 8)
    assert uniform(silent, 60, 600 * 9)


def test_the_same_seed_draws_the_same() -> None:
    evidence = LatentEvidence(0, flat_store(100, 40))

    def names(windows: list[ShownWindow]) -> list[str]:
        return [window.id for window in windows]

    first = names(sample_firing(evidence, Side.SCORE, 8, 1))
    assert first == names(sample_firing(evidence, Side.SCORE, 8, 1))
    assert first != names(sample_firing(evidence, Side.SCORE, 8, 2))
    assert names(sample_firing(evidence, Side.SCORE, 99, 1))[:8] == first


def test_the_firing_rate_is_that_of_what_may_be_judged() -> None:
    """Boilerplate that is held back is left out above and below, of a census and of a sample alike."""
    store = flat_store(100, 20)
    pool = store.pool(Side.SCORE)
    header = [
        int(t) for t in pool.tokens[3] if t >= 0
    ]  # window 3, in which the latent fires, is shown to explainers too
    store.pools[Side.EXPLAIN] = make_pool(Side.EXPLAIN, [header], [999], [RULES[2]], WINDOW)
    evidence = LatentEvidence(0, store)
    strata = silent_strata(evidence, Side.SCORE)
    assert strata.num_firing == 19
    assert strata.share_skipped == pytest.approx(0.01)
    assert firing_rate(evidence, strata) == pytest.approx(19 / 99)
    store.pools[Side.SCORE] = replace(pool, num_windows_side=100_000)
    sampled = LatentEvidence(0, store)
    assert not store.pool(Side.SCORE).is_census
    assert firing_rate(sampled, silent_strata(sampled, Side.SCORE)) == pytest.approx(19 / 99)


def exemplar(context: int, tokens: list[int], position: int = 0) -> Exemplar:
    values = np.array([0.5 if t == 5 else 0.0 for t in tokens], np.float32)
    ids = np.array(tokens, np.int32)
    return Exemplar(0, Side.SCORE, Origin.SAMPLED, ids, values, ids[:0], context, context, position)


def sparse_store(pool_firing: int, stored: list[Exemplar]) -> HandStore:
    """A pool that is a sample, beside stored exemplars of the whole side."""
    store = flat_store(50, pool_firing)
    store.pools[Side.SCORE] = replace(store.pools[Side.SCORE], num_windows_side=100_000)
    store.exemplars_by_key[(0, Side.SCORE, Origin.SAMPLED)] = stored
    return store


def test_stored_exemplars_are_taken_where_the_pool_has_fewer() -> None:
    stored = [exemplar(1000 + i, [0, 1 + i % 3, 2, 5, 4]) for i in range(30)]
    evidence = LatentEvidence(0, sparse_store(4, stored))
    taken = Counter[int]()
    for seed in range(600):
        windows = sample_firing(evidence, Side.SCORE, 10, seed)
        assert len(windows) == 10
        taken.update(w.context - 1000 for w in windows)
    assert uniform(taken, 30, 600 * 10)
    # a BOS is no token of the window, as in windows of the pool
    assert windows[0].token_ids.tolist()[1:] == [2, 5, 4]
    assert windows[0].firing_positions.tolist() == [2]
    assert windows[0].context_ids.tolist() == [0]


@pytest.mark.parametrize(("pool_firing", "stored", "count", "from_pool"), [(4, 4, 10, True), (12, 30, 10, True), (9, 10, 10, False)])  # fmt: skip
def test_pool_or_exemplars(pool_firing: int, stored: int, count: int, from_pool: bool) -> None:
    exemplars = [exemplar(1000 + i, [0, 1, 2, 5, 4]) for i in range(stored)]
    windows = sample_firing(LatentEvidence(0, sparse_store(pool_firing, exemplars)), Side.SCORE, count, 0)
    assert all((w.context < 1000) == from_pool for w in windows)
    assert len(windows) == min(count, pool_firing if from_pool else stored)


def test_exemplars_that_repeat_the_explain_side_or_were_seen_are_left_out() -> None:
    rng = np.random.default_rng(5)
    header = [int(t) for t in rng.integers(1, 5, 20)]
    stored = [
        exemplar(1000, [*header[3:16], 5]),  # 13 tokens of it
        exemplar(1001, [*header[4:16], 5]),  # 12 tokens of it
        exemplar(1002, [1, 2, 5]),
        exemplar(1003, [1, 5], 16),
    ]
    store = sparse_store(0, stored)
    store.pools[Side.EXPLAIN] = make_pool(Side.EXPLAIN, [[0, *header]], [0], [RULES[2]], 32)
    evidence = LatentEvidence(0, store, excluded=frozenset({(1003, 16), (1002, 16)}))
    assert {w.context for w in sample_firing(evidence, Side.SCORE, 9, 0)} == {1001, 1002}


def test_most_fired_token_counts_firings_then_strength_then_exemplars() -> None:
    def token_of(context: list[int], rule: Rule) -> int | None:
        pool = make_pool(Side.EXPLAIN, [context], [0], [rule])
        return most_fired_token(LatentEvidence(0, HandStore({Side.EXPLAIN: pool}, letters(WORDS))))

    assert token_of([0, 1, 2, 2, 3], lambda c, i: {1: 9.0, 2: 0.1}.get(c[i], 0.0)) == 2
    assert token_of([0, 1, 2, 2, 1], lambda c, i: {1: 1.0, 2: -3.0}.get(c[i], 0.0)) == 2
    assert token_of([0, 2, 1, 3], lambda c, i: float(c[i] < 3)) == 1
    assert token_of([0, 1], lambda c, i: 0.0) is None
    store = HandStore({Side.EXPLAIN: make_pool(Side.EXPLAIN, [[0, 1]], [0], [lambda c, i: 0.0])}, letters(WORDS))
    store.exemplars_by_key[(0, Side.EXPLAIN, Origin.SAMPLED)] = [exemplar(1, [3, 5, 5])]
    assert most_fired_token(LatentEvidence(0, store)) == 5


def strata_with(counts: dict[Stratum, int]) -> SilentStrata:
    rows = {stratum: np.arange(counts.get(stratum, 0)) for stratum in SILENT_STRATA}
    return SilentStrata(Side.SCORE, rows, 0, 0.0)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from(SILENT_STRATA), st.integers(0, 60)),
    st.integers(0, 100),
    st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda shares: sum(shares) <= 1),
)
def test_allocation_draws_what_there_is(counts: dict[Stratum, int], total: int, shares: list[float]) -> None:
    strata = strata_with(counts)
    wanted = dict(zip(SILENT_STRATA[:3], shares, strict=True))
    drawn = allocate(strata, total, wanted)
    assert sum(drawn.values()) == min(total, strata.num_silent)
    assert all(0 <= drawn[s] <= strata.counts[s] for s in SILENT_STRATA)
    uniform_drawn = uniform_counts(strata, total, np.random.default_rng(0))
    assert sum(uniform_drawn.values()) == min(total, strata.num_silent)
    assert all(0 <= uniform_drawn[s] <= strata.counts[s] for s in SILENT_STRATA)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((50, 50, 50), (5, 5, 10)),
        ((2, 50, 50), (2, 5, 13)),
        ((0, 0, 50), (0, 0, 20)),
        ((50, 50, 3), (12, 5, 3)),
        ((6, 7, 0), (6, 7, 0)),
    ],
)
def test_a_missing_stratums_share_goes_to_the_bulk(counts: tuple[int, ...], expected: tuple[int, ...]) -> None:
    kinds = (Stratum.NEIGHBOUR, Stratum.TOKEN, Stratum.BULK)
    drawn = allocate(
        strata_with(dict(zip(kinds, counts, strict=True))), 20, {Stratum.NEIGHBOUR: 0.25, Stratum.TOKEN: 0.25}
    )
    assert tuple(drawn[kind] for kind in kinds) == expected
