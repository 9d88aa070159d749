"""The vectorised matching against brute force over every position, and the trie's other form."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.patterns import WILDCARD, Pattern, PatternTrie, overlap_mask, pool_index
from autointerp.patterns.counting import scored_windows
from sae_core.errors import InputError
from sae_core.records import Side
from tests.autointerp.pools import make_pool

BEFORE = 6


@st.composite
def contexts(draw: st.DrawFn) -> list[list[int]]:
    rows = draw(st.lists(st.lists(st.integers(1, 3), min_size=0, max_size=21), min_size=1, max_size=4))
    return [[0, *row] for row in rows]


@st.composite
def tries(draw: st.DrawFn) -> PatternTrie:
    symbol = st.sampled_from([1, 2, 3, 0, -1, WILDCARD, WILDCARD])
    rows = draw(st.lists(st.lists(symbol, min_size=0, max_size=3), max_size=12))
    patterns: dict[tuple[int, ...], Pattern] = {}
    for number, row in enumerate(rows):
        symbols = (*row, draw(st.sampled_from([1, 2, 3, 0])))
        patterns[symbols] = Pattern(symbols, number % 3 != 0, float(number + 1), number + 5, number)
    return PatternTrie(tuple(patterns.values()))


def matches(symbols: tuple[int, ...], context: list[int], at: int) -> bool:
    for back, symbol in enumerate(symbols):
        token = context[at - back] if at - back >= 0 else -1
        if symbol not in (WILDCARD, token):
            return False
    return True


def rank(symbols: tuple[int, ...]) -> tuple[int, list[int]]:
    """Most literals first, then the nearest ones."""
    offsets = [i for i, s in enumerate(symbols) if s != WILDCARD]
    return len(offsets), [-o for o in offsets]


@settings(max_examples=150, deadline=None)
@given(contexts(), tries())
def test_prediction_equals_brute_force(rows: list[list[int]], trie: PatternTrie) -> None:
    pool = make_pool(Side.SCORE, rows, list(range(len(rows))), [lambda c, i: 1.0], window=5, before=BEFORE)
    got = trie.predict(pool)
    width = pool.tokens.shape[1]
    by_cell = {int(c): (float(a), bool(f)) for c, a, f in zip(got.cell, got.activation, got.fires, strict=True)}
    expected: dict[int, tuple[float, bool]] = {}
    for window, (context, start) in enumerate(zip(pool.context, pool.position, strict=True)):
        for column in range(int(pool.first_token[window]), width):
            at = int(start) + column - BEFORE
            if at >= len(rows[context]):
                continue
            best = max(
                (p for p in trie.patterns if matches(p.symbols, rows[context], at)),
                key=lambda p: rank(p.symbols),
                default=None,
            )
            assert trie.longest_match(rows[context][: at + 1]) == best
            if best is not None:
                expected[window * width + column] = best.activation, best.fires
    assert by_cell == expected
    assert np.all(np.diff(got.ordinal) > 0)


@settings(max_examples=100, deadline=None)
@given(tries())
def test_payload_round_trip_through_json(trie: PatternTrie) -> None:
    again = PatternTrie.from_payload(json.loads(json.dumps(trie.to_payload())))
    assert set(again.patterns) == set(trie.patterns)


@pytest.mark.parametrize("payload", [{}, {"format": 9}, {"format": 1, "depth": [0], "symbol": [4], "state": [2]}])
def test_foreign_payload_is_refused(payload: dict[str, object]) -> None:
    with pytest.raises(InputError, match="explain the latent again"):
        PatternTrie.from_payload(payload)


def test_context_columns_are_matched_but_never_predicted() -> None:
    row = [0, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2]
    pool = make_pool(Side.SCORE, [row], [0], [lambda c, i: 1.0], window=4, before=3)
    prediction = PatternTrie((Pattern((2, 1), True, 1.0, 1, 1),)).predict(pool)
    columns = prediction.cell % pool.tokens.shape[1]
    assert len(prediction.cell) == 5
    assert columns.min() >= 3


def test_start_of_sequence_without_bos() -> None:
    pool = make_pool(Side.SCORE, [[5, 6, 5], [5, 5]], [0, 1], [lambda c, i: 1.0], bos=None)
    prediction = PatternTrie((Pattern((5, -1), True, 1.0, 1, 1),)).predict(pool)
    assert prediction.cell.tolist() == [4, 12 + 4]
    assert pool_index(pool).start_literal == -1


def test_start_literal_is_the_bos() -> None:
    pool = make_pool(Side.SCORE, [[9, 6, 5]], [0], [lambda c, i: 1.0], bos=9)
    assert pool_index(pool).start_literal == 9


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=20), min_size=1, max_size=3),
    st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=20), min_size=1, max_size=3),
)
def test_repeated_runs_equal_brute_force(shown: list[list[int]], scored: list[list[int]]) -> None:
    length = 4
    a = make_pool(Side.EXPLAIN, [[0, *r] for r in shown], list(range(len(shown))), [lambda c, i: 0.0])
    b = make_pool(Side.SCORE, [[0, *r] for r in scored], list(range(len(scored))), [lambda c, i: 0.0])
    runs = set()
    for row in a.tokens.tolist():
        runs |= {tuple(row[i : i + length]) for i in range(len(row) - length + 1)}
    mask = overlap_mask(a, b, length)
    for row, first, kept in zip(b.tokens.tolist(), b.first_token, mask.kept, strict=True):
        text = [token for token in row if token >= 0]
        padding = row.index(text[0])
        own = [row[i : i + length] for i in range(int(first), len(row) - length + 1)]
        if padding + len(text) - int(first) < length <= len(text):  # short: with what stands before it
            own.append(text[-length:])
        repeated = any(-1 not in run and tuple(run) in runs for run in own)
        assert bool(kept) == (not repeated)
    assert mask.share_skipped == pytest.approx(float(np.mean(~mask.kept)))


def test_exemplars_outside_a_sampled_pool_count_as_shown() -> None:
    shown = make_pool(Side.EXPLAIN, [[0, 1, 1, 1, 1]], [0], [lambda c, i: 0.0])
    scored = make_pool(Side.SCORE, [[0, 1, 2, 1, 2, 2], [0, 2, 2, 2, 2]], [0, 1], [lambda c, i: 0.0])
    assert overlap_mask(shown, scored, 4).kept.all()
    width = shown.tokens.shape[1]
    exemplar = np.full((1, width), -1, dtype=np.int32)
    exemplar[0, -4:] = [1, 2, 1, 2]
    mask = overlap_mask(dataclasses.replace(shown, exemplar_tokens=exemplar), scored, 4)
    assert {int(c) for c in scored.context[~mask.kept]} == {int(scored.context[0])}


def test_index_and_mask_are_made_once() -> None:
    pool = make_pool(Side.SCORE, [[0, 1, 2]], [0], [lambda c, i: 1.0])
    other = make_pool(Side.EXPLAIN, [[0, 1, 2]], [0], [lambda c, i: 1.0])
    assert pool_index(pool) is pool_index(pool)
    assert scored_windows(pool, other) is scored_windows(pool, other)
    assert pool_index(pool) is not pool_index(other)
