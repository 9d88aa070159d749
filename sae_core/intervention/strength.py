"""Find the strength that meets a target, for many curves at once. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Evaluate = Callable[[NDArray[np.float64], NDArray[np.bool_]], NDArray[np.float64]]
"""(strengths [K], which curves are asked for [K]) -> values [K]; values of curves not asked for are ignored."""

_GROWTH = math.log(4.0)
"""Widest step of the log grid while a crossing is looked for."""
_NARROWEST = 1e-4
"""A bracket this narrow (in ln strength) whose ends miss the target holds a jump, not a crossing."""


class Strengths(NamedTuple):
    """What :func:`find_strengths` found for K curves."""

    strength: NDArray[np.float64]
    """[K] NaN where the target was not met."""
    value: NDArray[np.float64]
    """[K] value at ``strength``; where the target was not met, the finite one that came nearest (in ln), NaN without any."""
    met: NDArray[np.bool_]
    """[K]"""


def find_strengths(
    evaluate: Evaluate,
    start: NDArray[np.float64],
    target: float,
    *,
    tolerance: float,
    largest: float,
    max_evaluations: int,
) -> Strengths:
    """The strength at which each curve meets ``target``, within the relative ``tolerance``.

    All curves are evaluated together. Each is first bracketed on a log grid from ``start`` (the step is the one that a
    quadratic curve would need, at most a factor of 4), upwards from below or downwards from above, then the bracket is
    narrowed by interpolation in log-log, with a bisection every third time. A curve that is not monotone may meet the
    target more than once: then this is the first crossing met on the way from ``start``, not the smallest of all (from
    below the target at ``start`` no smaller strength is tried). An infinite value is above every target. A curve that
    stays below the target up to ``largest``, jumps over it, or is not met after ``max_evaluations`` evaluations is not
    met.
    """
    count = len(start)
    goal = math.log(target)
    x = np.log(start.astype(np.float64))
    low_x, low_y = np.full(count, -math.inf), np.full(count, -math.inf)
    high_x, high_y = np.full(count, math.inf), np.full(count, math.inf)
    strength = np.full(count, math.nan)
    value = np.full(count, math.nan)
    nearest = np.full(count, math.inf)
    met = np.zeros(count, dtype=bool)
    active = np.ones(count, dtype=bool)
    for turn in range(max_evaluations):
        if not active.any():
            break
        values = evaluate(np.exp(x), active)
        y = np.log(np.maximum(values, 1e-30))
        closer = active & (np.abs(y - goal) < nearest)
        nearest[closer] = np.abs(y - goal)[closer]
        value[closer] = values[closer]
        hit = active & (np.abs(values / target - 1) <= tolerance)
        strength[hit] = np.exp(x[hit])
        met |= hit
        active &= ~hit
        below, above = active & (y < goal), active & (y >= goal)
        low_x[below], low_y[below] = x[below], y[below]
        high_x[above], high_y[above] = x[above], y[above]
        bracketed = active & np.isfinite(low_x) & np.isfinite(high_x)
        rising, falling = active & np.isinf(high_x), active & np.isinf(low_x)
        active[rising & (x >= math.log(largest))] = False
        x[rising] = np.minimum(x + np.clip((goal - y) / 2, 0.05, _GROWTH), math.log(largest))[rising]
        x[falling] = (x - np.clip((y - goal) / 2, 0.05, _GROWTH))[falling]
        if bracketed.any():
            width = high_x[bracketed] - low_x[bracketed]
            share = (goal - low_y[bracketed]) / (high_y[bracketed] - low_y[bracketed])
            share = np.full_like(share, 0.5) if turn % 3 == 2 else np.clip(share, 0.1, 0.9)
            share[np.isinf(high_y[bracketed])] = 0.5  # which says nothing of how far above it is
            x[bracketed] = low_x[bracketed] + share * width
            active[np.flatnonzero(bracketed)[width < _NARROWEST]] = False
    return Strengths(strength, value, met)
