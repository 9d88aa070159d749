"""Correlation of predicted and true activations, pooled over all tokens, with an interval over documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autointerp.statistics.bootstrap import resample_counts
from sae_core.errors import InputError, NonFiniteError

_CONSTANT = 1e-12
"""A variance below this share of the mean square is rounding."""


@dataclass(frozen=True, slots=True)
class Correlation:
    """Pearson's correlation; the bounds are None below 2 documents."""

    value: float | None
    """None where the prediction or the truth is constant."""
    low: float | None
    high: float | None
    constant: bool
    """The prediction is the same everywhere; it counts as 0 in medians (METHODS 3)."""


def document_correlation(
    n: ArrayLike,
    sum_p: ArrayLike,
    sum_t: ArrayLike,
    sum_pp: ArrayLike,
    sum_tt: ArrayLike,
    sum_pt: ArrayLike,
    rng: np.random.Generator,
    resamples: int = 200,
    level: float = 0.95,
) -> Correlation:
    """Pooled Pearson correlation from per-document sums, each [D], and its bootstrap interval over documents.

    ``n`` tokens of a document; ``sum_p``, ``sum_t`` sums over them of the predicted and the true activation,
    ``sum_pp``, ``sum_tt``, ``sum_pt`` of their products. A resample in which the prediction is constant counts as a
    correlation of 0, one in which the truth is constant is left out.
    Raises :class:`InputError` for shapes that do not fit, :class:`NonFiniteError` for NaN or infinite sums.
    """
    columns = [np.asarray(column, dtype=np.float64) for column in (n, sum_p, sum_t, sum_pp, sum_tt, sum_pt)]
    if any(column.ndim != 1 or column.shape != columns[0].shape for column in columns):
        raise InputError(
            f"sums of shapes {[column.shape for column in columns]} were given; give one of each per document."
        )
    sums_D6 = np.stack(columns, axis=1)
    if not np.isfinite(sums_D6).all():
        raise NonFiniteError("a document's sum of activations is NaN or infinite; check the subject and the coder.")
    sums_D6 = sums_D6[sums_D6[:, 0] > 0]
    if not len(sums_D6):
        return Correlation(None, None, None, constant=True)
    value, constant = _pearson(_scaled(sums_D6).sum(axis=0)[None])
    if np.isnan(value[0]) or constant[0]:
        return Correlation(None, None, None, constant=bool(constant[0]))
    if len(sums_D6) < 2:
        return Correlation(float(value[0]), None, None, constant=False)
    scaled = _scaled(sums_D6)
    drawn: list[NDArray[np.float64]] = []
    for counts in resample_counts(len(scaled), resamples, rng):
        values, constants = _pearson(counts @ scaled)
        drawn.append(np.where(constants, 0.0, values))
    low, high = np.nanquantile(np.concatenate(drawn), [0.5 - level / 2, 0.5 + level / 2])
    return Correlation(float(value[0]), float(low), float(high), constant=False)


def _scaled(sums_D6: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same sums after shifting both variables to a mean of 0 and scaling them to a mean square of 1.

    The correlation is the same; the differences of large sums that it is made of lose fewer digits.
    """
    n, p, t, pp, tt, pt = sums_D6.T
    total = n.sum()
    mean_p, mean_t = p.sum() / total, t.sum() / total
    centred = [
        pp - 2 * mean_p * p + n * mean_p**2,
        tt - 2 * mean_t * t + n * mean_t**2,
        pt - mean_p * t - mean_t * p + n * mean_p * mean_t,
    ]
    # What is left of a constant after centring is rounding; taken as 0, else scaling would blow it up.
    scales = [
        float(np.sqrt(square.sum() / total)) if square.sum() > _CONSTANT * raw.sum() else 0.0
        for square, raw in ((centred[0], pp), (centred[1], tt))
    ]
    by_p, by_t = (1 / scale if scale else 0.0 for scale in scales)
    return np.stack(
        [
            n,
            (p - n * mean_p) * by_p,
            (t - n * mean_t) * by_t,
            centred[0] * by_p**2,
            centred[1] * by_t**2,
            centred[2] * by_p * by_t,
        ],
        axis=1,
    )


def _pearson(sums_B6: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """``(correlation [B], NaN where the truth is constant; whether the prediction is constant [B])``."""
    n, p, t, pp, tt, pt = sums_B6.T
    variance_p, variance_t = n * pp - p * p, n * tt - t * t
    constant = variance_p <= _CONSTANT * n * n
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (n * pt - p * t) / np.sqrt(variance_p * variance_t)
    value = np.where(variance_t <= _CONSTANT * n * n, np.nan, value)
    return np.clip(value, -1.0, 1.0), constant
