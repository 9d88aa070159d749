"""AUPRC at the natural rate and figures that re-use the verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from autointerp.statistics.natural_rate import (
    Estimate,
    above_threshold,
    average_precision,
    pooled_probabilities,
    precision_above,
    proportion,
    weighted_average_precision,
    weighted_recall,
)
from sae_core.errors import InputError, NonFiniteError


def test_average_precision_is_that_of_the_windows_written_out() -> None:
    rng = np.random.default_rng(0)
    probability, fires = np.round(rng.random(40), 1), rng.random(40) < 0.4
    copies = rng.integers(1, 5, 40)
    many, true = np.repeat(probability, copies), np.repeat(fires, copies)
    exact = np.mean([true[many >= value].mean() for value in many[true]])
    assert weighted_average_precision(probability, fires, copies)[0] == pytest.approx(exact)


def test_the_interval_of_auprc_holds_the_truth_where_bulk_decides() -> None:
    """Judges whose probabilities are drawn from known curves; truth by a sample of two million windows."""
    held, widths = 0, []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        pi, rate = 0.01, 10 ** rng.normal(-2.3, 0.5)

        def scores(yes: np.ndarray, rng: np.random.Generator = rng) -> np.ndarray:
            u = rng.random(len(yes))
            return np.where(yes, 0.5 + 0.5 * np.sqrt(u), 0.5 * u**2)

        def silent_scores(yes: np.ndarray, rng: np.random.Generator = rng) -> np.ndarray:
            u = rng.random(len(yes))
            return np.where(yes, 0.5 + 0.5 * u**2, 0.5 * u**2)

        firing = scores(rng.random(40) < 0.8)
        bulk = silent_scores(rng.random(88) < rate)
        run = silent_scores(rng.random(5_000) < 0.02)
        # A posterior of the rate that is right by construction: draws around a noisy reading of the truth.
        reading = np.log(rate) + rng.normal(0, 0.4)
        draws = np.zeros((400, 4))
        draws[:, 3] = np.exp(reading + rng.normal(0, 0.4, 400))
        stratum = np.concatenate([np.full(40, -1), np.full(88, 3)])
        got = average_precision(
            np.concatenate([firing, bulk]), stratum, pi, [0, 0, 0, 100], draws, pooled_probabilities(run), rng
        )
        big = np.concatenate([scores(rng.random(20_000) < 0.8), silent_scores(rng.random(200_000) < rate)])
        is_true = np.arange(220_000) < 20_000
        truth = weighted_average_precision(big, is_true, np.where(is_true, pi / 20_000, (1 - pi) / 200_000))[0]
        assert got.low is not None
        assert got.high is not None
        held += got.low <= truth <= got.high
        widths.append(got.high - got.low)
    assert held >= 26
    assert np.mean(widths) < 0.6


def test_auprc_without_firing_windows_is_not_defined_and_nan_is_refused() -> None:
    rng = np.random.default_rng(0)
    pooled = pooled_probabilities(np.array([0.1, 0.9]))
    got = average_precision([0.2], [3], 0.1, [0, 0, 0, 9], np.full((10, 4), 0.1), pooled, rng)
    assert (got.median, got.low, got.high) == (None, None, None)
    with pytest.raises(NonFiniteError):
        average_precision([np.nan], [3], 0.1, [0, 0, 0, 9], np.full((10, 4), 0.1), pooled, rng)


def test_equal_weights_give_the_plain_recall() -> None:
    latent = np.repeat([0, 1], 40)
    yes = np.concatenate([np.arange(40) < 30, np.arange(40) < 5])
    got = weighted_recall(latent, yes, np.full(80, 2.5), 3)
    plain = proportion(np.array([30.0, 5.0, 0.0]), np.array([40.0, 40.0, 0.0]))
    for bound in ("low", "median", "high"):
        np.testing.assert_allclose(getattr(got, bound), getattr(plain, bound))
    heavy = weighted_recall(latent, yes, np.where(yes, 10.0, 1.0), 2)
    assert heavy.median[0] > got.median[0]
    assert heavy.high[1] - heavy.low[1] > got.high[1] - got.low[1]
    with pytest.raises(InputError):
        weighted_recall([0], [True], [-1.0], 1)


def test_precision_above_a_threshold_is_the_old_one_times_a_share() -> None:
    latent, yes = np.repeat([0, 1], 50), np.tile(np.arange(50) < 40, 2)
    activation = np.tile(np.linspace(-2, 2, 50), 2)
    windows, confirmed = above_threshold(latent, yes, activation, np.array([1.0, 5.0]))
    above = np.abs(np.linspace(-2, 2, 50)) > 1
    assert (windows[0], confirmed[0]) == (above.sum(), (above & (np.arange(50) < 40)).sum())
    assert (windows[1], confirmed[1]) == (0, 0)
    old = Estimate(np.full(2, 0.6), np.full(2, 0.4), np.full(2, 0.8))
    got = precision_above(old, np.full(2, 40.0), np.array([20.0, 0.0]))
    assert got.median[0] == pytest.approx(0.3, abs=0.01)
    assert got.low[0] < 0.22
    assert 0.4 < got.high[0] < 0.5
    assert got.high[1] < 0.1
    assert np.all(got.low >= 0)
