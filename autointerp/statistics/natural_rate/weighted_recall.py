"""Figures that need no more judging: recall weighted by activation, and precision and recall above a threshold."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

from autointerp.statistics.natural_rate.figures import Estimate
from autointerp.statistics.natural_rate.grid import Floats
from sae_core.errors import InputError


def proportion(yes: Floats, judged: Floats, level: float = 0.95) -> Estimate:
    """Median and interval [L] of a proportion, Beta(1/2, 1/2) before the verdicts."""
    tail = (1 - level) / 2
    with_prior = yes + 0.5, judged - yes + 0.5
    return Estimate(*(np.asarray(betaincinv(*with_prior, share), dtype=np.float64) for share in (0.5, tail, 1 - tail)))


def weighted_recall(
    latent_W: ArrayLike, yes_W: ArrayLike, weight_W: ArrayLike, num_latents: int, level: float = 0.95
) -> Estimate:
    """Share of the weight (activation, say) of firing windows that got a yes, [num_latents].

    One entry a judged firing window: its latent, its verdict, its weight. The interval is that of as many equal windows as
    the weights are worth, (Σ w)² / Σ w² (Kish 1965). Without a window of any weight the interval is that of ignorance.
    """
    latent, yes = np.asarray(latent_W, dtype=np.intp), np.asarray(yes_W, dtype=np.float64)
    weight = np.asarray(weight_W, dtype=np.float64)
    if not latent.shape == yes.shape == weight.shape or np.any(weight < 0) or not np.isfinite(weight).all():
        raise InputError("give one latent, verdict and weight a window, no weight negative, NaN or infinite.")
    whole, squares, agreed = (
        np.bincount(latent, values, num_latents) for values in (weight, weight * weight, weight * yes)
    )
    nothing = np.zeros(num_latents)
    worth = np.divide(whole * whole, squares, out=nothing.copy(), where=squares > 0)
    share = np.divide(agreed, whole, out=nothing.copy(), where=whole > 0)
    return proportion(worth * np.clip(share, 0, 1), worth, level)


def precision_above(precision: Estimate, yes: Floats, yes_above: Floats, level: float = 0.95) -> Estimate:
    """Precision [L] if the latent counts as firing only above a threshold, say .1 or .5 of its maximum.

    What the label says does not depend on the threshold, so that precision is the old one times the share of the firing
    windows with a yes whose activation lies above it: ``yes_above`` of ``yes``. Both intervals are joined on the log scale (Zou & Donner 2008).
    Recall above the threshold is :func:`proportion` of the windows above it.
    """
    share = proportion(yes_above, yes, level)
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = np.log(precision.median) + np.log(share.median)
        down = np.hypot(np.log(precision.median / precision.low), np.log(share.median / share.low))
        up = np.hypot(np.log(precision.high / precision.median), np.log(share.high / share.median))
    high = np.minimum(np.exp(middle + np.nan_to_num(up)), precision.high)
    return Estimate(np.exp(middle), np.exp(middle - np.nan_to_num(down, posinf=np.inf)), high)


def above_threshold(
    latent_W: ArrayLike, yes_W: ArrayLike, activation_W: ArrayLike, threshold_L: ArrayLike
) -> tuple[Floats, Floats]:
    """(windows, yes) among judged firing windows whose |activation| lies above their latent's threshold, each [L]."""
    latent, yes = np.asarray(latent_W, dtype=np.intp), np.asarray(yes_W, dtype=np.float64)
    threshold = np.asarray(threshold_L, dtype=np.float64)
    above = (np.abs(np.asarray(activation_W)) > threshold[latent]).astype(np.float64)
    windows, confirmed = (np.bincount(latent, values, len(threshold)) for values in (above, above * yes))
    return windows.astype(np.float64), confirmed.astype(np.float64)
