"""Counted precision, recall and F1: values by hand and brute force, intervals by simulation."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from autointerp.statistics import counted_ratios, counted_ratios_many, ratio_over_documents
from sae_core.errors import InputError


@st.composite
def documents(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = draw(st.integers(1, 12))
    counts = [draw(hnp.arrays(np.int64, size, elements=st.integers(0, 9))) for _ in range(3)]
    tp, only_pred, only_pos = counts
    return tp, tp + only_pred, tp + only_pos


@given(documents())
def test_values_are_the_ratios_of_the_sums(counts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    tp, pred, pos = counts
    got = counted_ratios(tp, pred, pos)
    num_tp, num_pred, num_pos = (int(column.sum()) for column in counts)
    truth = {
        "precision": Fraction(num_tp, num_pred) if num_pred else None,
        "recall": Fraction(num_tp, num_pos) if num_pos else None,
        "f1": Fraction(2 * num_tp, num_pred + num_pos) if num_pred + num_pos else None,
    }
    for name, value in truth.items():
        low, high = getattr(got, f"{name}_low"), getattr(got, f"{name}_high")
        if value is None:
            assert (getattr(got, name), low, high) == (None, None, None)
        else:
            assert getattr(got, name) == pytest.approx(float(value))
            assert 0 <= low <= getattr(got, name) <= high <= 1
    assert got.predicts_nothing == (num_pred == 0)
    assert (got.num_tp, got.num_pred, got.num_pos) == (num_tp, num_pred, num_pos)


def test_one_row_of_many_is_the_row_alone() -> None:
    rng = np.random.default_rng(1)
    tp = rng.integers(0, 5, (6, 40))
    pred, pos = tp + rng.integers(0, 3, tp.shape), tp + rng.integers(0, 3, tp.shape)
    assert counted_ratios_many(tp, pred, pos) == [counted_ratios(*row) for row in zip(tp, pred, pos, strict=True)]


def test_documents_of_one_window_give_nearly_the_textbook_wilson_interval() -> None:
    hits = np.zeros(4000)
    hits[:1200] = 1
    got = ratio_over_documents(hits[None], np.ones((1, 4000)))
    truth = stats.binomtest(1200, 4000).proportion_ci(method="wilson")
    assert got.low[0] == pytest.approx(truth.low, abs=2e-4)
    assert got.high[0] == pytest.approx(truth.high, abs=2e-4)


def test_variance_is_the_linearised_one_of_the_jackknife() -> None:
    """Far from the borders, with many documents, half the width is 1.96 jackknife standard errors."""
    rng = np.random.default_rng(2)
    whole = rng.integers(1, 30, 400).astype(float)
    part = rng.binomial(whole.astype(int), rng.beta(2, 2, 400)).astype(float)
    got = ratio_over_documents(part[None], whole[None])
    left_out = (part.sum() - part) / (whole.sum() - whole)
    jackknife = np.sqrt(399 / 400 * np.sum((left_out - left_out.mean()) ** 2))
    assert (got.high[0] - got.low[0]) / 2 == pytest.approx(1.96 * jackknife, rel=0.02)


@pytest.mark.parametrize("truth", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("agreement", [0.05, 0.3])
@pytest.mark.parametrize("num_documents", [60, 200])
def test_interval_covers_the_truth_on_clustered_documents(truth: float, agreement: float, num_documents: int) -> None:
    """Beta-binomial documents of very unequal sizes; ``agreement`` is their intraclass correlation."""
    rng = np.random.default_rng([int(truth * 100), int(agreement * 100), num_documents])
    whole = rng.geometric(1 / 8, (2000, num_documents))
    spread = (1 - agreement) / agreement
    part = rng.binomial(whole, rng.beta(truth * spread, (1 - truth) * spread, whole.shape))
    got = ratio_over_documents(part.astype(float), whole.astype(float))
    covered = np.mean((got.low <= truth) & (truth <= got.high))
    assert 0.92 <= covered <= (0.98 if 0.1 < truth < 0.95 else 0.995)


def test_f1_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(7)
    shape = (2000, 80)
    rate = rng.beta(2, 6, shape)  # the latent's rate differs by document, as topics do
    size = rng.geometric(1 / 10, shape)
    pos = rng.binomial(size, rate)
    hit = rng.beta(8, 2, shape)
    tp = rng.binomial(pos, hit)
    pred = tp + rng.binomial(size - pos, 0.05)
    # Superpopulation: E pos = 10/4, E tp = .8 of it, E extra = 10·3/4·.05
    truth = 2 * 2.0 / (2.5 + 2.0 + 0.375)
    rows = counted_ratios_many(tp, pred, pos)
    covered = np.mean([row.f1_low <= truth <= row.f1_high for row in rows if row.f1_low is not None])
    assert 0.92 <= covered <= 0.98


def test_at_the_borders_the_documents_count_and_not_the_windows() -> None:
    one = counted_ratios([500], [500], [500])
    assert (one.precision_low, one.precision, one.precision_high) == (0, 1, 1)
    few = counted_ratios([100] * 5, [100] * 5, [100] * 5)
    many = counted_ratios([5] * 100, [5] * 100, [5] * 100)
    assert few.precision_low is not None
    assert many.precision_low is not None
    assert few.precision_low < 0.6 < 0.95 < many.precision_low < 0.97
    lopsided = counted_ratios([496, 1, 1, 1, 1], [496, 1, 1, 1, 1], [496, 1, 1, 1, 1])
    assert lopsided.precision_low is not None
    assert lopsided.precision_low < 0.2


def test_predicting_nothing_is_a_state_and_not_a_precision() -> None:
    silent = counted_ratios([0, 0, 0], [0, 0, 0], [2, 3, 0])
    assert silent.predicts_nothing
    assert silent.precision is None
    assert silent.precision_low is None
    assert silent.recall == 0
    assert silent.f1 == 0
    assert silent.recall_high is not None
    assert silent.recall_high > 0
    nothing = counted_ratios([0], [0], [0])
    assert nothing.f1 is None
    assert nothing.recall is None


@pytest.mark.parametrize(
    "counts",
    [([2], [1], [3]), ([-1], [1], [1]), ([1, 1], [1], [1]), ([np.nan], [1], [1])],
)
def test_impossible_counts_are_refused(counts: tuple[list[float], list[float], list[float]]) -> None:
    with pytest.raises(InputError):
        counted_ratios(*counts)
