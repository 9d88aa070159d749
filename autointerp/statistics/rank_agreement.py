"""Whether two figures put latents in the same order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri
from scipy.stats import rankdata

from sae_core.errors import InputError, NonFiniteError

FEWEST = 10
"""Pairs below which there is no agreement to speak of."""


@dataclass(frozen=True, slots=True)
class RankAgreement:
    """Spearman's rank correlation of n pairs."""

    value: float | None
    """None with fewer than :data:`FEWEST` pairs, or where one of the figures is the same for all."""
    low: float | None
    """Lower bound of the interval; None where the value is."""
    high: float | None
    num_pairs: int


def rank_agreement(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> RankAgreement:
    """Spearman's correlation of ``first`` [n] and ``second`` [n], ties at their mean rank.

    The interval is of Fisher's z with the standard error ``sqrt((1 + r² / 2) / (n - 3))`` (Bonett & Wright 2000,
    *Psychometrika* 65), which holds for a rank correlation up to about .9 where Fisher's own is too narrow.
    Raises :class:`InputError` for shapes that do not fit, :class:`NonFiniteError` for NaN or infinite values.
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if x.ndim != 1 or x.shape != y.shape:
        raise InputError(f"figures of shapes {x.shape} and {y.shape} were given; give two of each latent.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise NonFiniteError("a figure to be ranked is NaN or infinite; leave out latents without one.")
    if len(x) < FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return RankAgreement(None, None, None, len(x))
    value = float(np.clip(np.corrcoef(rankdata(x), rankdata(y))[0, 1], -1.0, 1.0))
    if abs(value) > 1 - 1e-12:  # its z is infinite
        return RankAgreement(round(value), round(value), round(value), len(x))
    half = float(ndtri(0.5 + level / 2)) * np.sqrt((1 + value**2 / 2) / (len(x) - 3))
    low, high = np.tanh(np.arctanh(value) - half), np.tanh(np.arctanh(value) + half)
    return RankAgreement(value, float(low), float(high), len(x))
