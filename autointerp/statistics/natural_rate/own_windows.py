"""What a latent's own windows say of its precision, nothing borrowed from other latents."""

from __future__ import annotations

import numpy as np
from scipy.special import betaincinv

from autointerp.statistics.natural_rate.counts import BULK, NUM_STRATA, VerdictCounts
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
    the bounds are Clopper-Pearson's. Where a screen parts the bulk, its share of flags, and the rates among flagged windows and among
    the others, have each their bounds. ``recall`` is taken as known: its error is small beside that of the bulk.
    """
    rates = [_bounded(judged, yes, level) for judged, yes in counts.rates()]
    weights = (counts.pool / counts.pool.sum(axis=1, keepdims=True)).T
    centre, below, above = (np.zeros(len(counts)) for _ in range(3))
    for stratum, weight in enumerate(weights):
        rate = rates[stratum]
        if stratum == BULK and counts.screen is not None:
            flagged = counts.screen.screened > 0  # without a screen of its own, a label's bulk windows are as they come
            rate = np.where(
                flagged, _mixed(missed=rate, confirmed=rates[NUM_STRATA], flags=rates[NUM_STRATA + 1]), rate
            )
        centre += weight * rate[0]
        below += np.square(weight * (rate[0] - rate[1]))
        above += np.square(weight * (rate[2] - rate[0]))
    right = counts.pi * recall
    wrong_low = (1 - counts.pi) * np.maximum(centre - np.sqrt(below), 0.0)
    wrong_high = (1 - counts.pi) * np.minimum(centre + np.sqrt(above), 1.0)
    with np.errstate(invalid="ignore"):
        low, high = right / (right + wrong_high), right / (right + wrong_low)
    return np.nan_to_num(low, nan=0.0), np.nan_to_num(high, nan=1.0)


def _bounded(judged: Floats, yes: Floats, level: float) -> Floats:
    """(share, low, high) of a rate, [3, L]; a half where nothing was judged."""
    share = np.divide(yes, judged, out=np.full(len(yes), 0.5), where=judged > 0)
    return np.stack([share, *clopper_pearson(judged, yes, level)])


def _mixed(missed: Floats, confirmed: Floats, flags: Floats) -> Floats:
    """The rate of bulk windows, [3, L], of what a screen misses, of what is confirmed of its flags, and of its share of flags.

    How much another share of flags matters goes by the farther bound of what is confirmed: of few flags little is known.
    """
    share = flags[0] * confirmed[0] + (1 - flags[0]) * missed[0]
    ends = []
    for side, other in ((1, 2), (2, 1)):
        parts = (
            flags[0] * (confirmed[side] - confirmed[0]),
            (1 - flags[0]) * (missed[side] - missed[0]),
            (flags[side] - flags[0]) * np.maximum(confirmed[2] - missed[0], 0.0),
            (flags[other] - flags[0]) * np.minimum(confirmed[1] - missed[0], 0.0),
        )
        distance = np.sqrt(sum(np.square(part) for part in parts))
        ends.append(share - distance if side == 1 else share + distance)
    return np.stack([share, np.maximum(ends[0], 0.0), np.minimum(ends[1], 1.0)])
