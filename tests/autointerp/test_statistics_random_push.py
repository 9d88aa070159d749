"""The range of one more random push: its parts by hand, and how often it holds a direction that was left out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from autointerp.statistics.multiplicity import benjamini_yekutieli
from autointerp.statistics.random_push import (
    control_means,
    left_out,
    norm_bands,
    random_push_chance,
    random_push_range,
    variance_prior,
)
from sae_core.errors import InputError

POOL, MOST = 64, 31
Floats = NDArray[np.float64]


def simulated(rng: np.random.Generator, latents: int, each: int, tail: str, spread: float) -> tuple[Floats, ...]:
    """Means [L, R], kinds and members of a pool: typical ones push 1 nat more and differ more, latents differ in how much."""

    def noise(*shape: int) -> Floats:
        if tail == "t3":
            return rng.standard_t(3, shape) / np.sqrt(3)
        if tail == "mixture":  # ln KL of a log-normal mixture: 15% of windows 2 nats above the others
            return rng.normal(0, 0.6, shape) + 2 * (rng.random(shape) < 0.15) - 0.3
        return rng.normal(size=shape)

    pool = np.where(np.arange(POOL) < POOL // 2, 0.0, 1.0) + np.repeat([0.5, 0.8], POOL // 2) * noise(POOL)
    halves = [
        [rng.choice(POOL // 2, each // 2, replace=False) + POOL // 2 * kind for kind in range(2)]
        for _ in range(latents)
    ]
    members = np.array([np.concatenate(pair) for pair in halves])
    scale = np.exp(spread * rng.normal(size=(latents, 1)))
    mean = pool[members] + 0.4 * scale * noise(latents, each) + 0.6 * noise(latents, each, 8).mean(axis=2)
    return mean, np.repeat([0, 1], each // 2), members, np.exp(rng.normal(size=latents))


@pytest.mark.parametrize("tail", ["normal", "t3", "mixture"])
@pytest.mark.parametrize(("latents", "each", "runs"), [(300, 4, 6), (120, 8, 6), (1, 16, 60)])
def test_a_direction_left_out_lies_in_the_range(tail: str, latents: int, each: int, runs: int) -> None:
    rng = np.random.default_rng([latents, each, len(tail)])
    found = []
    for number in range(runs):
        mean, kind, members, norm = simulated(rng, latents, each, tail, 0.7 * (number % 2))
        found.append(left_out(mean, kind, members, norm, most_freedom=MOST))
    draws = sum(one.num_draws for one in found)
    assert draws == runs * latents * each
    assert 0.93 <= sum(one.num_covered for one in found) / draws <= 0.98
    assert sum(one.num_below + one.num_above for one in found) == draws - sum(one.num_covered for one in found)


def test_the_range_without_others_is_students_prediction() -> None:
    """One latent, kinds that agree: the mixture is one t around 0 with the variance of a direction and of the mean."""
    values = np.array([[-1.0, 1.0, -1.0, 1.0]])
    means = control_means(values, np.array([0, 0, 1, 1]))
    assert means.centre.tolist() == [[0.0, 0.0]]
    assert means.variance.tolist() == [[2.0, 2.0]]
    low, high = random_push_range(means, [1.0], most_freedom=MOST)
    # variance 2 of a direction, and of a kind's mean 2/2: with one degree of freedom
    half = stats.t.ppf(0.975, 1) * np.sqrt(2 + 1)
    assert high[0] == pytest.approx(half, rel=1e-6)
    assert low[0] == pytest.approx(-half, rel=1e-6)


def test_kinds_that_differ_are_both_in_the_range() -> None:
    rng = np.random.default_rng(0)
    mean = np.concatenate([rng.normal(-4, 0.1, (500, 2)), rng.normal(4, 0.1, (500, 2))], axis=1)
    low, high = random_push_range(control_means(mean, np.array([0, 0, 1, 1])), np.ones(500), most_freedom=MOST)
    # half of the pushes lie at -4, half at +4: the bounds are the 5% quantile of the one and the 95% one of the other
    assert np.median(low) == pytest.approx(-4 - 1.645 * 0.1 * np.sqrt(1 + 1 / 4), abs=0.03)
    assert np.median(high) == pytest.approx(4 + 1.645 * 0.1 * np.sqrt(1 + 1 / 4), abs=0.03)


def test_a_variance_prior_is_found_again() -> None:
    """Variances drawn from a scaled inverse chi-squared with 8 degrees of freedom and scale 0.5, each known with 3."""
    rng = np.random.default_rng(3)
    true = 8 * 0.5 / rng.chisquare(8, 20_000)
    seen = true * rng.chisquare(3, 20_000) / 3
    prior = variance_prior(seen, np.full(20_000, 3.0), 1000.0)
    assert prior.freedom == pytest.approx(8, rel=0.1)
    assert prior.variance == pytest.approx(0.5, rel=0.03)
    same = variance_prior(0.5 * rng.chisquare(3, 20_000) / 3, np.full(20_000, 3.0), 31.0)
    assert same.freedom > 30
    assert same.variance == pytest.approx(0.5, rel=0.03)


def test_where_nothing_is_known_there_is_no_range() -> None:
    two = control_means([[0.0, 1.0]], np.array([0, 1]))
    assert np.isnan(random_push_range(two, [1.0], most_freedom=MOST)).all()
    still = control_means(np.zeros((20, 4)), np.array([0, 0, 1, 1]))
    assert np.isnan(random_push_range(still, np.ones(20), most_freedom=MOST)).all()
    with pytest.raises(InputError):
        random_push_range(still, np.ones(3), most_freedom=MOST)


def test_bands_are_of_like_norm_and_never_small() -> None:
    norm = np.random.default_rng(0).permutation(np.arange(350.0))
    norm[0] = np.nan
    bands = norm_bands(norm)
    assert [len(band) for band in bands] == [117, 116, 116]
    assert all(norm[a].max() < norm[b].min() for a, b in itertools.pairwise(bands))
    assert len(norm_bands(np.arange(150.0))) == 1


def nulls(rng: np.random.Generator, tail: str, latents: int = 300, each: int = 4) -> tuple[Floats, Floats]:
    """p- and q-values of latents that are one more direction of the pool each, as often of one kind as of the other."""
    mean, kind, _, norm = simulated(rng, latents, each + 2, tail, 0.3)
    own = np.where(rng.random(latents) < 0.5, each // 2, each + 1)  # the last one of either kind
    kept = np.delete(np.arange(each + 2), [each // 2, each + 1])
    effect = mean[np.arange(latents), own] - mean[:, kept].mean(axis=1)
    p = random_push_chance(control_means(mean[:, kept], kind[kept]), norm, effect, most_freedom=MOST)
    return p, benjamini_yekutieli(p)


def test_one_more_push_of_either_kind_has_uniform_p_values_and_no_small_q() -> None:
    rng = np.random.default_rng(3)
    runs = [nulls(rng, "normal") for _ in range(60)]
    p = np.concatenate([one for one, _ in runs])
    for level in (0.025, 0.1, 0.5):
        assert np.mean(p < level) == pytest.approx(level, rel=0.3)
    assert np.mean([np.any(q < 0.05) for _, q in runs]) <= 0.05


def test_a_chance_is_that_of_the_ranges_bounds() -> None:
    rng = np.random.default_rng(4)
    mean, kind, _, norm = simulated(rng, 200, 4, "t3", 0.5)
    controls = control_means(mean, kind)
    low, high = random_push_range(controls, norm, most_freedom=MOST)
    assert random_push_chance(controls, norm, high, most_freedom=MOST) == pytest.approx(np.full(200, 0.025), rel=1e-4)
    assert random_push_chance(controls, norm, low, most_freedom=MOST) == pytest.approx(np.full(200, 0.975), rel=1e-4)


def test_true_effects_are_found_and_undefined_ones_stay_undefined() -> None:
    rng = np.random.default_rng(5)
    mean, kind, _, norm = simulated(rng, 200, 8, "normal", 0.0)
    mean[7, 4:] = np.nan  # a latent without a typical direction
    effect = np.where(np.arange(200) < 100, 12.0, 0.0)
    p = random_push_chance(control_means(mean, kind), norm, effect, most_freedom=MOST)
    assert np.isnan(p[7])
    assert np.isfinite(np.delete(p, 7)).all()
    q = benjamini_yekutieli(p)
    assert np.isnan(q[7])
    assert (np.delete(q[:100], 7) < 0.05).all()
    assert np.mean(q[100:] < 0.05) <= 0.05
    with pytest.raises(InputError, match="200 latents"):
        random_push_chance(control_means(mean, kind), norm, effect[:5], most_freedom=MOST)


@pytest.mark.long
def test_draws_far_out_are_counted() -> None:
    rng = np.random.default_rng(6)
    far = {}
    for tail in ("normal", "t3"):
        found = [left_out(*simulated(rng, 400, 4, tail, 0.0), most_freedom=MOST) for _ in range(8)]
        far[tail] = sum(one.num_far for one in found) / sum(one.num_draws for one in found)
    assert far["normal"] < 0.002
    assert far["t3"] > max(3 * far["normal"], 0.0012)
