"""How well a number tells two kinds of windows apart, with an interval over documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from autointerp.statistics.bootstrap import resample_counts
from sae_core.errors import InputError, NonFiniteError


@dataclass(frozen=True, slots=True)
class Ranking:
    """Area under the ROC curve: the chance that a true one of two has the larger value, ties counting half."""

    auroc: float | None
    """None where one of the kinds is missing."""
    low: float | None
    """None below 2 documents."""
    high: float | None


def document_auroc(
    values: ArrayLike,
    truth: ArrayLike,
    documents: ArrayLike,
    rng: np.random.Generator,
    resamples: int = 500,
    level: float = 0.95,
) -> Ranking:
    """Ranking of ``values`` [W] by ``truth`` [W], with the percentile interval of a bootstrap over ``documents`` [W].

    Resamples without one of the two kinds are left out. Raises :class:`InputError` for shapes that do not fit,
    :class:`NonFiniteError` for values that are NaN or infinite.
    """
    given, true = np.asarray(values, dtype=np.float64), np.asarray(truth, dtype=np.bool_)
    document = np.asarray(documents)
    if given.ndim != 1 or not given.shape == true.shape == document.shape:
        raise InputError(
            f"values, truth and documents of shapes {given.shape}, {true.shape} and {document.shape} were given; "
            "give one of each a window."
        )
    if not np.isfinite(given).all():
        raise NonFiniteError("a value to be ranked is NaN or infinite; leave out windows without one.")
    if not true.any() or true.all():
        return Ranking(None, None, None)
    above = given[true][:, None] - given[~true]
    wins = (above > 0) + 0.5 * (above == 0)
    known, index = np.unique(document, return_inverse=True)
    if len(known) < 2:
        return Ranking(float(wins.mean()), None, None)
    drawn = []
    for counts in resample_counts(len(known), resamples, rng):
        positive, negative = counts[:, index[true]], counts[:, index[~true]]
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        both = pairs > 0
        drawn.append(((positive @ wins) * negative).sum(axis=1)[both] / pairs[both])
    found = np.concatenate(drawn)
    if not len(found):
        return Ranking(float(wins.mean()), None, None)
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])
    return Ranking(float(wins.mean()), float(low), float(high))
