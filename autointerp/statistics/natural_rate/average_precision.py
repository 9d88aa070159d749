"""Area under the precision-recall curve at the natural rate, for judges that give probabilities (METHODS 4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autointerp.statistics.natural_rate.counts import NUM_STRATA
from autointerp.statistics.natural_rate.grid import Floats
from sae_core.errors import InputError, NonFiniteError

RUN_WORTH = 2.0
"""Windows of its own that the run's probabilities are worth to a latent: the one yes that it may have does not speak for all."""


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """AUPRC: mean precision over the firing windows, each at the threshold that just lets it in."""

    median: float | None
    """None without firing windows; never without its interval."""
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, eq=False)
class PooledProbabilities:
    """Probabilities of a yes on silent windows of any latent of the run, beside a latent's own few."""

    yes: Floats
    """Those of at least one half, [A]."""
    no: Floats
    """The others, [B]."""


def weighted_average_precision(probability_W: ArrayLike, fires_W: ArrayLike, weight_SW: ArrayLike) -> Floats:
    """AUPRC for each of S sets of weights [S, W]; windows of one probability enter together."""
    probability, fires = np.asarray(probability_W, dtype=np.float64), np.asarray(fires_W, dtype=np.bool_)
    weight = np.atleast_2d(np.asarray(weight_SW, dtype=np.float64))
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    last = np.searchsorted(-ranked, -ranked, side="right") - 1
    true = np.where(fires[order], weight[:, order], 0.0)
    let_in = np.cumsum(weight[:, order], axis=1)[:, last]
    right = np.cumsum(true, axis=1)[:, last]
    precision = np.divide(right, let_in, out=np.zeros_like(right), where=let_in > 0)
    return np.asarray((precision * true).sum(axis=1) / true.sum(axis=1), dtype=np.float64)


def average_precision(
    probability_W: ArrayLike,
    stratum_W: ArrayLike,
    pi: float,
    pool_H: ArrayLike,
    rate_SH: Floats,
    pooled: PooledProbabilities,
    rng: np.random.Generator,
    level: float = 0.95,
) -> AveragePrecision:
    """AUPRC of one latent with its interval.

    ``probability_W`` of a confirmed yes on every judged window; ``stratum_W`` -1 for firing windows, else 0 to 3;
    ``rate_SH`` the latent's draws of its rates (:func:`stratum_draws`).

    One bulk window stands for hundreds of firing ones, and the few dozen that were judged hold none that matters. So the share of each stratum that gets a yes
    comes from the posterior, as for precision, and only the probabilities within the yeses and within the noes come from windows:
    the latent's own and, worth :data:`RUN_WORTH` of them, the run's, weighed anew in every draw (a Dirichlet process; Ferguson 1973).
    """
    probability, stratum = np.asarray(probability_W, dtype=np.float64), np.asarray(stratum_W)
    pool = np.asarray(pool_H, dtype=np.float64)
    if probability.ndim != 1 or probability.shape != stratum.shape or pool.shape != (NUM_STRATA,):
        raise InputError("give one probability and one stratum a window, and the pool's windows of the four strata.")
    if not np.isfinite(probability).all():
        raise NonFiniteError("a probability is NaN or infinite; leave out windows without one.")
    firing = probability[stratum < 0]
    if not len(firing):
        return AveragePrecision(None, None, None)
    num_draws = len(rate_SH)
    values, fires, weights = (
        [firing],
        [np.ones(len(firing), np.bool_)],
        [pi * rng.dirichlet(np.ones(len(firing)), num_draws)],
    )
    for h in range(NUM_STRATA):
        if pool[h] == 0:
            continue
        mine = probability[stratum == h]
        share = (1 - pi) * pool[h] / pool.sum()
        for part, own, others in (
            (rate_SH[:, h], mine[mine >= 0.5], pooled.yes),
            (1 - rate_SH[:, h], mine[mine < 0.5], pooled.no),
        ):
            # Without any window of the kind in the whole run: the value that harms most, or not at all.
            base = others if len(others) else np.array([1.0 if others is pooled.yes else 0.0])
            known = np.concatenate([own, base])
            values.append(known)
            fires.append(np.zeros(len(known), np.bool_))
            worth = np.concatenate([np.ones(len(own)), np.full(len(base), RUN_WORTH / len(base))])
            weights.append(share * part[:, None] * rng.dirichlet(worth, num_draws))
    drawn = weighted_average_precision(np.concatenate(values), np.concatenate(fires), np.concatenate(weights, axis=1))
    low, median, high = np.quantile(drawn, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return AveragePrecision(float(median), float(low), float(high))


def pooled_probabilities(probability_W: ArrayLike, most: int = 200) -> PooledProbabilities:
    """Of all silent windows of a run, ``most`` of each kind, evenly over their order by size."""
    values = np.sort(np.asarray(probability_W, dtype=np.float64))
    return PooledProbabilities(*(_thinned(part, most) for part in (values[values >= 0.5], values[values < 0.5])))


def _thinned(values: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    if len(values) <= most:
        return values
    return values[((np.arange(most) + 0.5) * len(values) / most).astype(np.intp)]
