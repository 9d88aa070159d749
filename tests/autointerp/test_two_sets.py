"""Comparing two sets: against all pairs, all ways to deal the values, scipy, and populations of known area."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats

from autointerp.statistics import benjamini_hochberg
from autointerp.statistics.two_sets import compare_sets
from sae_core.errors import InputError, NonFiniteError

Values = NDArray[np.float64]


def area_by_pairs(first: Values, second: Values) -> float:
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in first for b in second]
    return sum(wins) / len(wins)


def sets_of(n: int, m: int) -> NDArray[np.bool_]:
    return np.arange(n + m) < n


@settings(max_examples=60)
@given(
    values=hnp.arrays(
        np.float64,
        st.tuples(st.integers(4, 9), st.integers(1, 6)),
        elements=st.sampled_from((-1.0, 0.0, 0.0, 0.5, 2.0)),
    ),
    n=st.integers(2, 7),
    order=st.randoms(use_true_random=False),
)
def test_areas_and_p_values_are_those_of_all_pairs_and_all_deals(values: Values, n: int, order: object) -> None:
    num = len(values)
    n = min(n, num - 2)
    places = list(range(num))
    order.shuffle(places)  # type: ignore[attr-defined]
    first = np.isin(np.arange(num), places[:n])
    found = compare_sets(values, first)
    for column, of_latent in enumerate(values.T):
        area = area_by_pairs(of_latent[first], of_latent[~first])
        assert found.auroc[column] == pytest.approx(area, abs=1e-12)
        dealt = []
        for chosen in itertools.combinations(range(num), n):
            other = [i for i in range(num) if i not in chosen]
            dealt.append(area_by_pairs(of_latent[list(chosen)], of_latent[other]))
        exact = float(np.mean(np.abs(np.array(dealt) - 0.5) >= abs(area - 0.5) - 1e-9))
        # a p that cannot matter is approximate
        assert found.p[column] == pytest.approx(exact, rel=1e-9) or min(found.p[column], exact) > 0.1
        assert found.low[column] <= area <= found.high[column]
        assert 0 <= found.low[column] < found.high[column] <= 1


def test_without_ties_p_is_scipys_exact_one() -> None:
    generator = np.random.default_rng(0)
    for n, m in ((20, 20), (7, 40), (40, 7)):
        values = generator.normal(size=(n + m, 200)) + 0.8 * sets_of(n, m)[:, None]
        found = compare_sets(values, sets_of(n, m))
        exact = stats.mannwhitneyu(values[:n], values[n:], axis=0, method="exact").pvalue
        small = exact < 0.1
        assert small.sum() > 50
        np.testing.assert_allclose(found.p[small], exact[small], rtol=1e-9)


def test_large_sets_have_the_normal_p_and_rare_latents_of_uneven_sets_the_exact_one() -> None:
    generator = np.random.default_rng(1)
    n, m = 150, 150
    values = np.round(generator.normal(size=(n + m, 40)) + 0.3 * sets_of(n, m)[:, None], 1)
    normal = stats.mannwhitneyu(values[:n], values[n:], axis=0, method="asymptotic").pvalue
    np.testing.assert_allclose(compare_sets(values, sets_of(n, m)).p, normal, rtol=1e-9)
    # three of three firing passages are among 30 of 330: the hypergeometric chance, which the normal one misses by far
    rare = np.zeros((330, 1))
    rare[:3, 0] = (1.0, 2.0, 3.0)
    hypergeometric = stats.hypergeom.sf(2, 330, 3, 30)
    assert compare_sets(rare, sets_of(30, 300)).p[0] == pytest.approx(hypergeometric, rel=1e-9)
    assert stats.mannwhitneyu(rare[:30], rare[30:], axis=0, method="asymptotic").pvalue[0] < hypergeometric / 100


def test_the_sets_can_be_exchanged_and_silence_says_nothing() -> None:
    generator = np.random.default_rng(2)
    values = np.where(generator.random((30, 50)) < 0.3, generator.exponential(size=(30, 50)), 0)
    values[:, 0] = 0
    first = sets_of(12, 18)
    one, other = compare_sets(values, first), compare_sets(values, ~first)
    np.testing.assert_allclose(one.auroc, 1 - other.auroc, atol=1e-12)
    np.testing.assert_allclose(one.low, 1 - other.high, atol=1e-9)
    np.testing.assert_allclose(one.p, other.p, rtol=1e-9)
    assert (one.auroc[0], one.p[0]) == (0.5, 1.0)


def test_an_interval_of_separated_sets_has_width_and_shrinks_with_more() -> None:
    widths = []
    for size in (2, 5, 20, 100):
        found = compare_sets(np.arange(2 * size, 0, -1.0)[:, None], sets_of(size, size))
        assert (found.auroc[0], found.high[0]) == (1.0, 1.0)
        widths.append(1 - found.low[0])
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 0.5
    assert widths[-1] < 0.05


def test_what_cannot_be_compared_is_refused() -> None:
    for values, first in (
        (np.zeros(4), sets_of(2, 2)),
        (np.zeros((4, 2)), sets_of(2, 3)),
        (np.zeros((4, 2)), sets_of(1, 3)),
        (np.zeros((4, 2)), sets_of(4, 0)),
    ):
        with pytest.raises(InputError):
            compare_sets(values, first)
    with pytest.raises(NonFiniteError):
        compare_sets(np.full((4, 1), np.nan), sets_of(2, 2))


@given(
    p=hnp.arrays(
        np.float64, st.integers(0, 30), elements=st.one_of(st.floats(0, 1), st.sampled_from((0.0, 0.01, 1.0)))
    ),
    silent=st.integers(0, 20),
)
def test_q_values_are_scipys_with_the_silent_latents_counted(p: Values, silent: int) -> None:
    q = benjamini_hochberg(p, len(p) + silent)
    if len(p):
        np.testing.assert_allclose(
            q, stats.false_discovery_control(np.append(p, np.ones(silent)))[: len(p)], atol=1e-15
        )
    assert q.shape == p.shape


def test_q_values_of_nonsense_are_refused() -> None:
    for p, tests in (([0.5, 1.5], None), ([-0.1], None), ([np.nan], None), ([0.1, 0.2], 1)):
        with pytest.raises(InputError):
            benjamini_hochberg(p, tests)


Draw = Callable[[np.random.Generator, int, int], tuple[Values, Values]]


def normal(shift: float) -> Draw:
    return lambda g, rows, columns: (g.normal(shift, 1, (rows, columns)), g.normal(0, 1, (rows, columns)))


def rare(fires: float, silent: float, scale: float) -> Draw:
    """Silent on most passages, as latents are."""

    def draw(g: np.random.Generator, rows: int, columns: int) -> tuple[Values, Values]:
        shape = (rows, columns)
        first = np.where(g.random(shape) < fires, g.exponential(scale, shape), 0.0)
        return first, np.where(g.random(shape) < silent, g.exponential(1.0, shape), 0.0)

    return draw


def two_valued(fires: float, silent: float) -> Draw:
    return lambda g, rows, columns: (
        1.0 * (g.random((rows, columns)) < fires),
        1.0 * (g.random((rows, columns)) < silent),
    )


POPULATIONS: tuple[Draw, ...] = (
    normal(0.0),
    normal(0.75),
    normal(1.8),
    normal(3.0),
    rare(0.3, 0.02, 1.0),
    rare(0.5, 0.1, 2.0),
    rare(0.9, 0.1, 3.0),
    rare(0.97, 0.02, 5.0),
    rare(0.1, 0.1, 1.0),
    two_valued(0.3, 0.02),
    two_valued(0.9, 0.1),
    two_valued(0.98, 0.02),
    two_valued(0.5, 0.5),
)


@pytest.mark.long
@pytest.mark.parametrize(
    ("n", "m", "least"),
    [
        (2, 2, 0.87),
        (3, 3, 0.86),
        (4, 4, 0.93),
        (5, 5, 0.93),
        (4, 20, 0.87),
        (10, 10, 0.93),
        (10, 60, 0.93),
        (25, 25, 0.93),
    ],
)
def test_intervals_cover_the_area_of_known_populations(n: int, m: int, least: float) -> None:
    generator = np.random.default_rng(n * 1000 + m)
    for draw in POPULATIONS:
        many, others = (np.sort(side, axis=None) for side in draw(generator, 200_000, 1))
        below, upto = (np.searchsorted(others, many, side=side) for side in ("left", "right"))
        truth = float((below + upto).mean() / 2 / len(others))
        first = draw(generator, n, 2000)[0]
        found = compare_sets(np.concatenate([first, draw(generator, m, 2000)[1]]), sets_of(n, m))
        # the area itself is known to some thousandths
        covered = float(((found.low - 0.002 <= truth) & (truth <= found.high + 0.002)).mean())
        assert covered >= least, (truth, covered)
        assert covered <= 1


@pytest.mark.long
def test_p_values_are_small_as_often_as_they_should_be() -> None:
    generator = np.random.default_rng(3)
    for n, m in ((5, 5), (20, 20), (12, 80), (100, 100)):
        for fires in (0.05, 0.3, 1.0):
            shape = (n + m, 4000)
            values = np.where(generator.random(shape) < fires, generator.exponential(1.0, shape), 0.0)
            p = compare_sets(values, sets_of(n, m)).p
            for level in (0.01, 0.05):
                assert (p <= level).mean() <= level + 4 * np.sqrt(level / 4000)
