"""Which latents tell two sets of passages apart: area under the ROC curve of many columns, its interval, a rank test.

Letters: P passages of both sets, n of the first and m of the second, C latents of a tile.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from sae_core.errors import InputError, NonFiniteError

FEWEST = 2
"""Passages of a set, without which nothing can be said of how they vary."""
_EXACT_STEPS = 4_000_000
"""Additions that one exact distribution may take, some hundredths of a second."""
_CLEARLY_NOTHING = 0.2
"""From this p on the normal approximation says enough: no q below it can come of such a p."""
_HALVINGS = 40


class SetComparison(NamedTuple):
    """Of each column."""

    auroc: NDArray[np.float64]
    """[C] chance that a passage of the first set has the larger value, ties counting half."""
    low: NDArray[np.float64]
    """[C]"""
    high: NDArray[np.float64]
    """[C]"""
    p: NDArray[np.float64]
    """[C] two-sided p of the Mann-Whitney test that both sets are drawn alike."""


def compare_sets(values: ArrayLike, in_first: ArrayLike, level: float = 0.95) -> SetComparison:
    """Compare the passages of ``values`` [P, C] that are ``in_first`` [P] with the others, column by column.

    **The interval** is a score interval: those areas A that lie no further from the estimate than z standard errors, these
    taken at A itself, so it reaches away from 1 where the sets are separated. The variance has Hanley & McNeil's form with
    equal sizes in its two terms (Newcombe 2006, *Statistics in Medicine* 25, method 5), times a factor: DeLong's variance
    over that form, both with one made-up passage above and one below all others in each set, so that neither is 0, and at
    most 1 + 2/min(n, m). Ties make the form far too large, and the factor knows of them.

    Simulated with 2,000 draws of each of 13 populations (normal, zero-inflated and two-valued, areas .50 to .98), for sets of
    2 + 2 to 100 + 100 passages: it covers .94 to 1.00, .97 on average, save where a set has fewer than 5 passages and the area
    is .90 or more (.88 at worst). DeLong's own interval (600 draws) covers .05 to .73 with 2 + 2 passages, .15 to .90 with 4 + 4
    and .33 to .95 with 10 + 10, and has no width where the sets are separated. It is conservative where most passages tie.
    It is that of one latent: of the first of many, chosen because it is the first, it says too much.

    **The p-value** is exact given the ties: the share of all ways to deal the values to the sets in which the area
    lies as far from .5 or farther. Where that takes too long (more than about 50 values beside the most frequent one in
    large sets), or the normal approximation gives more than .2, it is the normal approximation with variance
    corrected for ties and continuity correction.

    Raises:
        InputError: shapes that do not fit, or a set with fewer than :data:`FEWEST` passages.
        NonFiniteError: a value is NaN or infinite.
    """
    given, first = np.asarray(values, dtype=np.float64), np.asarray(in_first, dtype=np.bool_)
    if given.ndim != 2 or first.shape != given.shape[:1]:
        raise InputError(f"values of shape {given.shape} and sets of shape {first.shape} were given; give a set a row.")
    n, m = int(first.sum()), int((~first).sum())
    if min(n, m) < FEWEST:
        raise InputError(f"sets of {n} and {m} passages were given: give at least {FEWEST} each.")
    if not np.isfinite(given).all():
        raise NonFiniteError("a value to be compared is NaN or infinite; leave out passages without one.")
    ranks = rankdata(given, axis=0)
    above = (ranks[first] - rankdata(given[first], axis=0)) / m  # share of the second set below each of the first
    below = 1 - (ranks[~first] - rankdata(given[~first], axis=0)) / n
    auroc = (ranks[first].sum(axis=0) - n * (n + 1) / 2) / (n * m)
    low, high = _interval(auroc, _factor(above, below), n, m, float(ndtri(0.5 + level / 2)))
    return SetComparison(auroc, low, high, _p_values(ranks, first))


def _form(area: NDArray[np.float64], n: int, m: int) -> NDArray[np.float64]:
    """Hanley & McNeil's variance of an area, with the mean of both sizes in either term."""
    more = (n + m) / 2 - 1
    return area * (1 - area) * (1 + more * ((1 - area) / (2 - area) + area / (1 + area))) / (n * m)


def _factor(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """[C] DeLong's variance over :func:`_form`, from each passage's share of the other set ([n, C] and [m, C])."""
    n, m = len(above), len(below)
    variance = np.zeros(above.shape[1])
    for shares, other in ((above, m), (below, n)):
        edges = np.broadcast_to([[0.5 / (other + 2)], [1 - 0.5 / (other + 2)]], (2, above.shape[1]))
        padded = np.concatenate([(shares * other + 1) / (other + 2), edges])
        variance += padded.var(axis=0, ddof=1) / len(shares)
        area = padded.mean(axis=0)
    return np.minimum(variance / _form(area, n, m), 1 + 2 / min(n, m))


def _interval(
    area: NDArray[np.float64], factor: NDArray[np.float64], n: int, m: int, z: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    bounds = []
    for end in (0.0, 1.0):
        inside, outside = area.copy(), np.full_like(area, end)
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            near = np.abs(area - middle) <= z * np.sqrt(factor * _form(middle, n, m))
            inside, outside = np.where(near, middle, inside), np.where(near, outside, middle)
        bounds.append(inside)
    return bounds[0], bounds[1]


def _p_values(ranks: NDArray[np.float64], first: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[C] from midranks [P, C]."""
    num, n = len(ranks), int(first.sum())
    # twice the sum of the first set's ranks less its mean: whole numbers
    distance = np.abs(np.rint(2 * ranks[first].sum(axis=0)).astype(np.int64) - n * (num + 1))
    spread = ((ranks - (num + 1) / 2) ** 2).sum(axis=0) * n * (num - n) / (num * (num - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.maximum(distance / 2 - 0.5, 0) / np.sqrt(spread)
    p = np.where(spread > 0, np.minimum(2 * ndtr(-np.nan_to_num(z)), 1), 1.0)
    for column in np.flatnonzero((p < _CLEARLY_NOTHING) & (spread > 0)):
        _, counts = np.unique(ranks[:, column], return_counts=True)
        tails = _tails(tuple(counts.tolist()), min(n, num - n))
        if tails is not None:
            p[column] = tails[distance[column]]
    return p


@lru_cache(maxsize=256)
def _tails(counts: tuple[int, ...], drawn: int) -> NDArray[np.float64] | None:
    """Of twice a rank sum, the chance of every distance from its mean or a larger one; None where that takes too long.

    ``counts``: how often each value occurs, smallest value first; ``drawn`` of them are dealt to the smaller set. Ways are
    counted value by value, by how many are drawn and the sum of their ranks. The most frequent value (silence, mostly)
    comes last, since what is still to be drawn then are copies of it.
    """
    count = np.asarray(counts)
    num, common = int(count.sum()), int(np.argmax(count))
    scores = 2 * (np.cumsum(count) - count) + count + 1  # twice the midranks
    others = [(int(t), int(s)) for i, (t, s) in enumerate(zip(count, scores, strict=True)) if i != common]
    most = min(drawn, num - int(count[common]))
    base = min(score for _, score in others)
    step = math.gcd(*(score - base for _, score in others)) or 1
    largest = np.sort(np.repeat([(score - base) // step for _, score in others], [t for t, _ in others]))[::-1]
    width = int(largest[:most].sum()) + 1
    if sum(min(t, most) for t, _ in others) * (most + 1) * width > _EXACT_STEPS:
        return None
    ways = np.zeros((most + 1, width))
    ways[0, 0] = 1
    for t, score in others:
        before, shift = ways.copy(), (score - base) // step
        for taken in range(1, min(t, most) + 1):
            ways[taken:, taken * shift :] += math.comb(t, taken) * before[: most + 1 - taken, : width - taken * shift]
    taken_NS, sum_NS = np.indices(ways.shape)
    rest = np.array([float(math.comb(int(count[common]), drawn - taken)) for taken in range(most + 1)])
    total = taken_NS * base + step * sum_NS + (drawn - taken_NS) * int(scores[common])
    distance: NDArray[np.int64] = np.abs(total - drawn * (num + 1)).astype(np.int64)
    chances = np.bincount(distance.ravel(), weights=(ways * rest[:, None]).ravel()).astype(np.float64)
    tails: NDArray[np.float64] = np.cumsum(chances[::-1])[::-1] / chances.sum()
    return tails
