"""Spearman's correlation against scipy's, and the coverage of its interval against correlations that are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from autointerp.statistics.rank_agreement import FEWEST, rank_agreement
from sae_core.errors import InputError, NonFiniteError


def test_it_is_spearmans_with_ties() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 9, 200)
    y = x + rng.integers(0, 9, 200)
    found = rank_agreement(x, np.exp(y))
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.low < found.value < found.high  # type: ignore[operator]
    assert found.num_pairs == 200


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("count", [30, 200])
def test_the_interval_covers(rho: float, count: int) -> None:
    """Of bivariate normal pairs the rank correlation of the population is 6 / pi asin(rho / 2)."""
    truth = 6 / np.pi * np.arcsin(rho / 2)
    rng = np.random.default_rng(4)
    draws = 3000
    held = 0
    for _ in range(draws):
        x = rng.standard_normal(count)
        y = rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(count)
        found = rank_agreement(x, y)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert 0.925 <= held / draws <= 0.98


def test_where_there_is_nothing_to_say() -> None:
    few = rank_agreement(np.arange(FEWEST - 1), np.arange(FEWEST - 1))
    assert (few.value, few.low, few.high, few.num_pairs) == (None, None, None, FEWEST - 1)
    assert rank_agreement(np.ones(50), np.arange(50)).value is None
    same = rank_agreement(np.arange(50), np.arange(50) ** 3)
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    with pytest.raises(InputError, match="two of each latent"):
        rank_agreement([1.0, 2.0], [1.0])
    with pytest.raises(NonFiniteError):
        rank_agreement([1.0, np.nan], [1.0, 2.0])
