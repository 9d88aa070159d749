"""The share that a substitute keeps: by hand, and how often its interval covers the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from autointerp.statistics.recovered import recovered_share
from sae_core.errors import InputError, NonFiniteError


def test_the_figure_is_one_minus_the_weighted_means() -> None:
    assert recovered_share([0.0, 0.0], [1.0, 3.0]).value == 1.0
    assert recovered_share([1.0, 3.0], [1.0, 3.0]).value == 0.0
    assert recovered_share([1.0, 1.0], [1.0, 3.0]).value == pytest.approx(0.5)
    # 4 silent windows of mean 1 for each firing one: (1 + 4) / 2
    assert recovered_share([1.0, 1.0], [1.0, 3.0], [0.5, 1.5], odds=4.0).value == pytest.approx(-1.5)


def test_the_interval_is_fiellers() -> None:
    """Its ends are where the t statistic of mean(kl) - rho mean(ablated) meets the quantile: put in and look."""
    rng = np.random.default_rng(0)
    ablated = 1 + rng.random(20)
    kl = ablated * rng.random(20)
    got = recovered_share(kl, ablated, unseen=False)
    assert got.low is not None
    assert got.high is not None
    for end in (1 - got.low, 1 - got.high):
        u = kl - end * ablated
        assert abs(u.mean() / (u.std(ddof=1) / math.sqrt(20))) == pytest.approx(t.ppf(0.975, 19), rel=1e-9)
    silent = rng.random(6)
    got = recovered_share(kl, ablated, silent, odds=3.0, odds_spread=0.04, unseen=False)
    assert got.low is not None
    u = kl - (1 - got.low) * ablated
    error = u.var(ddof=1) / 20 + 9 * (silent.var(ddof=1) / 6 + 0.04 * silent.mean() ** 2)
    assert (u.mean() + 3 * silent.mean()) / math.sqrt(error) == pytest.approx(-t.ppf(0.975, 5), rel=1e-9)


def test_perfect_windows_leave_room_for_one_that_was_not_seen() -> None:
    few, many = (recovered_share(np.zeros(n), np.ones(n)) for n in (8, 64))
    assert few.value == many.value == 1.0
    assert few.high == many.high == 1.0
    assert few.low is not None
    assert many.low is not None
    assert 1 - few.low > 2 / 9 > 2 / 65 * 3 > 1 - many.low > 1 / 65
    assert recovered_share(np.zeros(8), np.ones(8), unseen=False).low == 1.0


def test_a_silent_window_that_the_sample_of_the_text_does_not_hold_is_in_the_interval() -> None:
    kl, ablated = np.full(16, 0.1), np.ones(16)
    whole, sample = (recovered_share(kl, ablated, odds_of_one=one) for one in (0.0, 0.5))
    assert whole.value == sample.value == pytest.approx(0.9)
    assert whole.low is not None
    assert sample.low is not None
    # one more of the ablated windows' size: half a window for a firing one, and t of that times the root of 2
    assert sample.low == pytest.approx(0.9 - 0.9 / 17 - 0.5 - t.ppf(0.975, 15) * 0.5 * math.sqrt(2), abs=0.05)
    assert sample.high == whole.high, "what was not seen cannot speak for the label"
    others = [recovered_share(kl, ablated, np.full(8, kept), odds=4.0, odds_of_one=0.5) for kept in (0.0, 0.1, 3.0)]
    t7, wider = t.ppf(0.975, 7), [0.5, 0.5, 1.5]
    for got, silent, one in zip(others, (0.0, 0.4, 12.0), wider, strict=True):
        assert got.low is not None
        assert got.low == pytest.approx(0.9 - silent - 0.9 / 17 - one - t7 * one * math.sqrt(2), abs=0.1 * (1 + one))


@pytest.mark.parametrize(("firing", "odds"), [(1e-4, 0.3), (1e-4, 1.0), (1e-4, 3.0), (3e-4, 1.0)])
def test_the_interval_covers_where_silent_windows_are_counted_in_a_sample(firing: float, odds: float) -> None:
    """30,000 windows, in which silent ones with a prediction come as often as chance has it: often not at all."""
    rng, size, n = np.random.default_rng(int(10 * odds)), 30_000, 16
    covered = 0
    for _ in range(400):
        ablated = np.exp(1.5 * rng.standard_normal(n))
        count = int(rng.binomial(size, odds * firing))
        silent = np.exp(1.5 * rng.standard_normal(min(count, n)))
        found = count / size / firing
        spread = 1 / count if count else 0.0
        got = recovered_share(0.1 * ablated, ablated, silent, found, spread, odds_of_one=1 / size / firing)
        assert got.high is not None
        covered += (got.low is None or got.low <= 0.9 - odds) and got.high >= 0.9 - odds
    assert covered / 400 >= 0.95


def test_no_lower_end_is_said() -> None:
    got = recovered_share([0.1, 0.1, 0.1], [1e-4, 1e-4, 9.0])
    assert got.low is None
    assert got.value is not None
    assert got.high is not None


def test_one_window_and_none() -> None:
    alone = recovered_share([0.5], [1.0])
    assert (alone.value, alone.low, alone.high) == (0.5, None, None)
    assert recovered_share([], []).value is None
    assert recovered_share([0.0, 0.0], [0.0, 0.0]).value is None, "nothing to keep is no share of 1"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="one substituted and one"):
        recovered_share([1.0], [1.0, 2.0])
    with pytest.raises(InputError, match="no KL"):
        recovered_share([1.0], [1.0], odds=2.0)
    with pytest.raises(NonFiniteError):
        recovered_share([math.nan], [1.0])


@pytest.mark.parametrize("sigma", [1.0, 2.0])
@pytest.mark.parametrize(("missed", "odds"), [(0.05, 0.1), (0.4, 0.3), (0.8, 1.0)])
@pytest.mark.parametrize("n", [8, 16, 32])
def test_the_interval_covers_with_heavy_tails(sigma: float, missed: float, odds: float, n: int) -> None:
    """Log-normal ablated KLs; what is missed costs as much as ablation, what is hit a tenth; silent windows like firing ones."""
    rng = np.random.default_rng(int(100 * missed) + n)
    truth = 1 - (missed + (1 - missed) * 0.1 + odds * 0.5)
    covered = 0
    for _ in range(500):
        ablated = np.exp(sigma * rng.standard_normal(n))
        kl = ablated * np.where(rng.random(n) < missed, 1.0, 0.1)
        silent = 0.5 * np.exp(sigma * rng.standard_normal(n))
        got = recovered_share(kl, ablated, silent, odds)
        assert got.high is not None
        covered += (got.low is None or got.low <= truth) and truth <= got.high
    assert covered / 500 >= 0.93
