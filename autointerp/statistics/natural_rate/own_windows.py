"""What a latent's own windows say of its precision, nothing borrowed from other latents."""

from __future__ import annotations

import numpy as np
from scipy.special import betaincinv

from autointerp.statistics.natural_rate.counts import NUM_STRATA, VerdictCounts
from autointerp.statistics.natural_rate.grid import Floats


def clopper_pearson(judged: Floats, yes: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Exact bounds of a rate (Clopper & Pearson 1934), of any shape; (0, 1) where nothing was judged."""
    tail = (1 - level) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(yes > 0, betaincinv(np.maximum(yes, 1e-300), judged - yes + 1, tail), 0.0)
        high = np.where(yes < judged, betaincinv(yes + 1, np.maximum(judged - yes, 1e-300), 1 - tail), 1.0)
    return np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)


def own_precision(counts: VerdictCounts, recall: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Bounds of precision [L] from a latent's own silent windows.

    Every stratum's rate has its Clopper-Pearson bounds; those of the weighted sum lie as far from it as the root of the
    squared distances (Zou & Donner 2008, *Statistics in Medicine* 27). The bulk alone decides in nearly all cases, and with the bulk alone
    the bounds are Clopper-Pearson's. ``recall`` is taken as known: its error is small beside that of the bulk.
    """
    rates = counts.rates()[:NUM_STRATA]
    weights = (counts.pool / counts.pool.sum(axis=1, keepdims=True)).T
    centre, below, above = (np.zeros(len(counts)) for _ in range(3))
    for weight, (judged, yes) in zip(weights, rates, strict=True):
        low, high = clopper_pearson(judged, yes, level)
        share = np.divide(yes, judged, out=np.full(len(yes), 0.5), where=judged > 0)
        centre += weight * share
        below += np.square(weight * (share - low))
        above += np.square(weight * (high - share))
    right = counts.pi * recall
    wrong_low = (1 - counts.pi) * np.maximum(centre - np.sqrt(below), 0.0)
    wrong_high = (1 - counts.pi) * np.minimum(centre + np.sqrt(above), 1.0)
    with np.errstate(invalid="ignore"):
        low, high = right / (right + wrong_high), right / (right + wrong_low)
    return np.nan_to_num(low, nan=0.0), np.nan_to_num(high, nan=1.0)
