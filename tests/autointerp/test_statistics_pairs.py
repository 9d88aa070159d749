"""Correlation, paired differences and multiplicity against scipy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from autointerp.statistics import (
    Correlation,
    benjamini_yekutieli,
    document_correlation,
    paired_difference,
    resample_counts,
)
from sae_core.errors import InputError, NonFiniteError


def _sums(predicted: np.ndarray, true: np.ndarray, document: np.ndarray) -> list[np.ndarray]:
    columns = [np.ones_like(true), predicted, true, predicted**2, true**2, predicted * true]
    return [np.bincount(document, weights=column) for column in columns]


def _correlation(predicted: np.ndarray, true: np.ndarray, document: np.ndarray, seed: int = 0) -> Correlation:
    n, p, t, pp, tt, pt = _sums(predicted, true, document)
    return document_correlation(n, p, t, pp, tt, pt, np.random.default_rng(seed))


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_correlation_is_pearsons_over_all_tokens(offset: float) -> None:
    rng = np.random.default_rng(3)
    document = rng.integers(0, 30, 3000)
    true = rng.gamma(0.2, 2.0, 3000)
    predicted = true + rng.normal(0, 1, 3000) + offset
    got = _correlation(predicted, true, document)
    assert got.value == pytest.approx(stats.pearsonr(predicted, true).statistic, abs=1e-6)
    assert got.low is not None
    assert got.high is not None
    assert got.value is not None
    assert got.low < got.value < got.high


def test_correlation_interval_covers_the_truth_on_clustered_tokens() -> None:
    rng = np.random.default_rng(4)
    document = np.repeat(np.arange(60), 20)
    truth = 0.6
    covered = 0
    for draw in range(300):
        shared = rng.multivariate_normal([0, 0], [[0.3, 0.3 * truth], [0.3 * truth, 0.3]], 60)[document]
        own = rng.multivariate_normal([0, 0], [[0.7, 0.7 * truth], [0.7 * truth, 0.7]], len(document))
        predicted, true = (shared + own).T
        got = _correlation(predicted, true, document, seed=draw)
        assert got.low is not None
        assert got.high is not None
        covered += got.low <= truth <= got.high
    assert 0.90 <= covered / 300 <= 0.98


def test_a_constant_prediction_is_a_state() -> None:
    rng = np.random.default_rng(5)
    true = rng.normal(size=100)
    document = np.arange(100) // 10
    for level in (0.0, 0.1, 1e3):
        assert _correlation(np.full(100, level), true, document) == Correlation(None, None, None, constant=True)
    assert _correlation(true, np.zeros(100), document) == Correlation(None, None, None, constant=False)


def test_one_document_has_no_interval() -> None:
    rng = np.random.default_rng(6)
    true = rng.normal(size=50)
    got = _correlation(true + rng.normal(size=50), true, np.zeros(50, dtype=int))
    assert got.value is not None
    assert (got.low, got.high) == (None, None)


def test_resamples_do_not_depend_on_the_block_size() -> None:
    small = np.concatenate(list(resample_counts(7, 50, np.random.default_rng(0), block_cells=20)))
    large = np.concatenate(list(resample_counts(7, 50, np.random.default_rng(0))))
    assert np.array_equal(small, large)
    assert (large.sum(axis=1) == 7).all()


def test_paired_difference_interval_is_near_the_t_interval_and_covers() -> None:
    rng = np.random.default_rng(8)
    first = rng.beta(2, 2, 400)
    second = first - rng.normal(0.05, 0.2, 400)
    got = paired_difference(first, second, np.random.default_rng(0))
    truth = stats.ttest_1samp(first - second, 0).confidence_interval(0.95)
    assert got.mean == pytest.approx(np.mean(first - second))
    assert got.low == pytest.approx(truth.low, abs=0.003)
    assert got.high == pytest.approx(truth.high, abs=0.003)
    assert got.above_zero
    covered = 0
    for draw in range(300):
        sample = rng.exponential(1.0, 60)
        interval = paired_difference(sample, np.zeros(60), np.random.default_rng(draw), resamples=400)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 1.0 <= interval.high
    assert 0.88 <= covered / 300 <= 0.98


def test_paired_difference_of_few_pairs() -> None:
    rng = np.random.default_rng(0)
    assert paired_difference([], [], rng).mean is None
    one = paired_difference([1.0], [0.25], rng)
    assert (one.mean, one.low, one.num_pairs) == (0.75, None, 1)
    assert not one.above_zero
    with pytest.raises(NonFiniteError):
        paired_difference([np.nan], [0.0], rng)
    with pytest.raises(InputError):
        paired_difference([1.0, 2.0], [0.0], rng)


@given(hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1)))
def test_q_values_are_scipys(p: np.ndarray) -> None:
    assert benjamini_yekutieli(p) == pytest.approx(stats.false_discovery_control(p, method="by"))


def test_undefined_p_values_are_no_tests() -> None:
    got = benjamini_yekutieli([0.01, np.nan, 0.2])
    assert np.isnan(got[1])
    assert got[[0, 2]] == pytest.approx(stats.false_discovery_control([0.01, 0.2], method="by"))
    assert len(benjamini_yekutieli([])) == 0
    with pytest.raises(InputError):
        benjamini_yekutieli([1.5])
