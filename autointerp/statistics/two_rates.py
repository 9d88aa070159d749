"""Two rates from independent samples and their difference, exact or near it for samples of ten."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from autointerp.statistics.natural_rate.own_windows import clopper_pearson


class RateEstimate(NamedTuple):
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


def rate(hits: int, total: int) -> RateEstimate:
    """``hits / total`` with its bounds by Clopper & Pearson (1934); ``total`` is at least 1."""
    low, high = clopper_pearson(np.array([float(total)]), np.array([float(hits)]))
    return RateEstimate(hits / total, float(low[0]), float(high[0]))


def difference(one: RateEstimate, other: RateEstimate) -> RateEstimate:
    """``one - other`` of two independent estimates.

    Its bounds lie as far from it as the root of the squared distances of the two rates' bounds (Zou & Donner 2008,
    *Statistics in Medicine* 27).
    """
    value = one.value - other.value
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return RateEstimate(value, max(value - below, -1.0), min(value + above, 1.0))
