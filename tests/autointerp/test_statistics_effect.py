"""The causal effect's estimate and the coverage of its interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from autointerp.statistics import causal_effect, kl_floor
from sae_core.errors import InputError, NonFiniteError


def test_value_is_the_mean_log_ratio() -> None:
    got = causal_effect([math.e, math.e**3], [[1.0, math.e**2], [1.0, math.e**2]], floor=1e-15)
    assert got.value == pytest.approx(1.0)  # (1 - 1 + 3 - 1) / 2
    assert got.ablation_kl == pytest.approx((math.e + math.e**3) / 2)
    assert got.control_kl == pytest.approx((1 + math.e**2) / 2)
    # delta = 0 and 2 (variance 2, /2 windows = 1); directions' means 0 and 2 (variance 2, /2 = 1)
    assert got.standard_error == pytest.approx(math.sqrt(2))
    assert got.degrees_of_freedom == pytest.approx(4 / (1 + 1))


@pytest.mark.parametrize(("num_windows", "num_directions", "spread"), [(50, 8, 0.1), (50, 8, 0.7), (80, 16, 0.4)])
@pytest.mark.parametrize("effect", [0.0, 1.5])
def test_interval_covers_the_truth(num_windows: int, num_directions: int, spread: float, effect: float) -> None:
    assert 0.93 <= _coverage(num_windows, num_directions, spread, effect) <= 0.975


@pytest.mark.parametrize("spread", [0.05, 0.3, 1.0])
def test_a_small_sample_still_covers(spread: float) -> None:
    """Demo's setting, 8 windows and 4 directions; 1,500 draws resolve .95 to about .012."""
    assert 0.92 <= _coverage(8, 4, spread, 1.0) <= 0.98


def _coverage(num_windows: int, num_directions: int, spread: float, effect: float, draws: int = 1500) -> float:
    rng = np.random.default_rng([num_windows, num_directions, int(100 * spread), int(effect)])
    covered = 0
    for _ in range(draws):
        window = rng.normal(-6, 1.5, num_windows)  # how much anything matters in this window, latent and controls alike
        direction = rng.normal(0, spread, num_directions)
        own = np.exp(window + effect + rng.normal(0, 0.8, num_windows))
        control = np.exp(window[:, None] + direction + rng.normal(0, 0.6, (num_windows, num_directions)))
        got = causal_effect(own, control, floor=1e-12)
        assert got.low is not None
        assert got.high is not None
        covered += got.low <= effect <= got.high
    return covered / draws


@pytest.mark.parametrize("tail", ["t3", "mixture"])
@pytest.mark.parametrize("num_directions", [4, 8, 16])
@pytest.mark.parametrize("num_windows", [8, 50])
def test_heavy_tails_are_covered(num_windows: int, num_directions: int, tail: str) -> None:
    """ln KL with Student's t of 3 degrees of freedom, or of a log-normal mixture, in windows and directions alike.

    1,500 draws resolve .95 to about .012, hence .925 for .93.
    """
    rng = np.random.default_rng([num_windows, num_directions, len(tail)])

    def noise(*shape: int) -> NDArray[np.float64]:
        if tail == "t3":
            return np.asarray(rng.standard_t(3, shape) / np.sqrt(3))
        return np.asarray(rng.normal(0, 0.6, shape) + 2 * (rng.random(shape) < 0.15) - 0.3)

    covered, draws, effect = 0, 1500, 1.0
    for _ in range(draws):
        window = rng.normal(-6, 1.5, num_windows)
        own = np.exp(window + effect + 0.8 * noise(num_windows))
        direction = 0.3 * rng.standard_t(3, num_directions) / np.sqrt(3)
        control = np.exp(window[:, None] + direction + 0.6 * noise(num_windows, num_directions))
        got = causal_effect(own, control, floor=1e-12)
        assert got.low is not None
        assert got.high is not None
        covered += got.low <= effect <= got.high
    assert 0.925 <= covered / draws <= 0.98


def test_a_latent_that_nobody_reads_stands_below_the_control() -> None:
    rng = np.random.default_rng(0)
    got = causal_effect(np.zeros(20), np.exp(rng.normal(-7, 0.5, (20, 8))), floor=1e-6)
    assert got.high is not None
    assert got.high < 0
    assert got.share_above_floor == 0


@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (0, 4), (5, 0)])
def test_too_few_windows_or_directions_leave_it_undefined(shape: tuple[int, int]) -> None:
    got = causal_effect(np.full(shape[0], 0.1), np.full(shape, 0.1), floor=1e-6)
    assert got.value is None
    assert got.low is None
    assert got.ablation_kl == (pytest.approx(0.1) if shape[0] else None)
    assert (got.num_windows, got.num_directions) == shape


def test_where_nothing_varies_there_is_no_interval() -> None:
    got = causal_effect(np.zeros(5), np.zeros((5, 3)), floor=1e-6)
    assert (got.value, got.low, got.high) == (0, None, None)


def test_bad_values_are_refused() -> None:
    with pytest.raises(NonFiniteError):
        causal_effect([0.1, np.nan], np.ones((2, 2)), floor=1e-6)
    with pytest.raises(InputError):
        causal_effect([0.1, 0.1], np.ones((3, 2)), floor=1e-6)
    with pytest.raises(InputError):
        causal_effect([0.1, 0.1], np.ones((2, 2)), floor=0.0)
    with pytest.raises(NonFiniteError):
        kl_floor(float("nan"))


def test_the_floor_is_ten_times_the_noise_and_at_least_a_millionth() -> None:
    assert kl_floor(0.0) == 1e-6
    assert kl_floor(1e-4) == pytest.approx(1e-3)
