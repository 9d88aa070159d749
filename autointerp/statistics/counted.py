"""Precision, recall and F1 of a prediction that was counted on whole documents (METHODS 4, "Counted P and R").

Windows of one document depend on each other, so the document is the unit that varies. Each figure is a
ratio estimator over documents, ``R = Σ x_d / Σ y_d`` with ``x_d <= y_d``, whose linearised variance is
``D/(D-1) · Σ (x_d - R·y_d)² / (Σ y_d)²`` (Cochran 1977, *Sampling Techniques*, 6.5), D counting the
documents with ``y_d > 0`` (the others say nothing about R; counting them would only hide how few there are).

The interval is Wilson's at an effective number of windows, everywhere and not only near 0 and 1, so that
no threshold makes it jump:

* away from the borders ``n_lin = R(1-R)/Var``;
* at a border the residuals vanish and Var with them, whatever the truth; what is left to go by is Kish's
  effective number of documents ``n_kish = (Σ y_d)² / Σ y_d²``, right if all windows of a document agree;
* in between ``1/n = (m/n_lin + 1/n_kish) / (m + 1)``, m the number of documents that hold the rarer outcome:
  the variance counts for as many documents as it was seen on, the cautious value for one;
* never more than the windows themselves, and ``(z/t)²`` of it, t at D - 1 degrees of freedom, because the
  variance is itself estimated on D documents (Korn & Graubard 1998, *Survey Methodology* 24). One document
  alone therefore gives the interval [0, 1].

Simulated coverage of the 95% interval, beta-binomial documents of geometric sizes (mean 3 and 15 windows, intraclass
correlation .05 and .3, R from .02 to .99): .94 to .99 at 60 and 200 documents, .95 to 1.00 at 8 and 20, where
it errs on the wide side.

F1 is ``2J/(1+J)`` for ``J = TP / (Pred + Pos - TP)``; J is a proportion of windows as the others are, and the
map is monotone, so the interval of J is carried over. To first order this is the ratio ``2TP/(Pred + Pos)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

from sae_core.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CountedRatios:
    """Counted figures of one label. A figure and its bounds are None where its denominator is 0."""

    precision: float | None
    precision_low: float | None
    precision_high: float | None
    recall: float | None
    recall_low: float | None
    recall_high: float | None
    f1: float | None
    f1_low: float | None
    f1_high: float | None
    predicts_nothing: bool
    """The label holds in no window: precision is not defined; a state of its own, not a precision of 0."""
    num_pred: int
    """Windows in which the label holds."""
    num_pos: int
    """Windows in which the latent fires."""
    num_tp: int
    """Windows in which both do."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ratio estimates and their bounds, each [L]; NaN where the denominator is 0."""

    value: Floats
    low: Floats
    high: Floats

    def bounds(self, row: int) -> tuple[float | None, float | None, float | None]:
        """``(value, low, high)`` of one row, None where they are not defined."""
        if np.isnan(self.value[row]):
            return None, None, None
        return float(self.value[row]), float(self.low[row]), float(self.high[row])


def counted_ratios(tp_D: ArrayLike, pred_D: ArrayLike, pos_D: ArrayLike, level: float = 0.95) -> CountedRatios:
    """Precision, recall and F1 with intervals, from counts of windows per document, each [D].

    ``tp_D`` windows where the label holds and the latent fires, ``pred_D`` where the label holds, ``pos_D``
    where the latent fires. Raises :class:`InputError` for counts that cannot be.
    """
    tp, pred, pos = (np.atleast_2d(np.asarray(column)) for column in (tp_D, pred_D, pos_D))
    return counted_ratios_many(tp, pred, pos, level)[0]


def counted_ratios_many(
    tp_LD: ArrayLike, pred_LD: ArrayLike, pos_LD: ArrayLike, level: float = 0.95
) -> list[CountedRatios]:
    """:func:`counted_ratios` for L latents at once; the counts are [L, D]."""
    tp, pred, pos = (np.asarray(counts, dtype=np.float64) for counts in (tp_LD, pred_LD, pos_LD))
    if not (tp.ndim == 2 and tp.shape == pred.shape == pos.shape):
        raise InputError(
            f"counts of shapes {tp.shape}, {pred.shape} and {pos.shape} were given; "
            "true positives, predicted and positive windows must be counted over the same documents."
        )
    if not 0 < level < 1:
        raise InputError(f"an interval's level of {level} was given; give one between 0 and 1, such as 0.95.")
    if not (np.all(tp >= 0) and np.all(tp <= np.minimum(pred, pos))):
        raise InputError(
            "a document has more true positives than predicted or positive windows, or a negative count; "
            "count windows, each at most once."
        )
    precision = ratio_over_documents(tp, pred, level)
    recall = ratio_over_documents(tp, pos, level)
    union = ratio_over_documents(tp, pred + pos - tp, level)
    f1 = Ratio(*(2 * part / (1 + part) for part in (union.value, union.low, union.high)))
    totals = [counts.sum(axis=1) for counts in (tp, pred, pos)]
    rows: list[CountedRatios] = []
    for latent in range(len(tp)):
        num_tp, num_pred, num_pos = (int(total[latent]) for total in totals)
        rows.append(
            CountedRatios(
                *precision.bounds(latent),
                *recall.bounds(latent),
                *f1.bounds(latent),
                predicts_nothing=num_pred == 0,
                num_pred=num_pred,
                num_pos=num_pos,
                num_tp=num_tp,
            )
        )
    return rows


def ratio_over_documents(part_LD: Floats, whole_LD: Floats, level: float = 0.95) -> Ratio:
    """``Σ part / Σ whole`` over documents with the interval of the module's docstring, for counts [L, D]."""
    total = whole_LD.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = part_LD.sum(axis=1) / total
        num_documents = np.count_nonzero(whole_LD > 0, axis=1).astype(np.float64)
        residuals = np.square(part_LD - value[:, None] * whole_LD).sum(axis=1)
        variance = num_documents / (num_documents - 1) * residuals / np.square(total)
        per_window = value * (1 - value)
        inverse_kish = np.square(whole_LD).sum(axis=1) / np.square(total)
        # At a border Var and R(1-R) are both 0, and m = 0 takes their ratio out of the sum.
        inverse_linear = np.where(per_window > 0, variance / per_window, 0.0)
        rarer = np.where((value <= 0.5)[:, None], part_LD, whole_LD - part_LD)
        seen = np.count_nonzero(rarer > 0, axis=1)
        inverse = (seen * inverse_linear + inverse_kish) / (seen + 1)
        effective = np.minimum(1 / inverse, total)
        z = float(ndtri(0.5 + level / 2))
        t = np.asarray(stdtrit(np.maximum(num_documents - 1, 1), 0.5 + level / 2), dtype=np.float64)
        effective = effective * np.square(z / t)
        low, high = _wilson(value, effective, z)
        alone = num_documents == 1
        low, high = np.where(alone, 0.0, low), np.where(alone, 1.0, high)
    return Ratio(value, low, high)


def _wilson(value: Floats, number: Floats, z: float) -> tuple[Floats, Floats]:
    """Wilson's score interval of a proportion seen on ``number`` (not necessarily whole) trials."""
    scale = 1 + z * z / number
    centre = (value + z * z / (2 * number)) / scale
    half = z / scale * np.sqrt(value * (1 - value) / number + np.square(z / (2 * number)))
    # Rounding may leave the bound of a value of 0 or 1 on its wrong side.
    return np.minimum(np.maximum(centre - half, 0.0), value), np.maximum(np.minimum(centre + half, 1.0), value)
