"""Which of many latents have an effect, false discoveries held down (METHODS 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_core.errors import InputError


def benjamini_yekutieli(p: ArrayLike) -> NDArray[np.float64]:
    """q-values [L] of p-values [L]; NaN stays NaN and is not counted as a test.

    Holds the false discovery rate under any dependence between the tests (Benjamini & Yekutieli 2001,
    *Ann. Statist.* 29), which latents that share a corpus, directions and neighbours need.
    Raises :class:`InputError` outside 0 to 1.
    """
    given = np.asarray(p, dtype=np.float64)
    defined = ~np.isnan(given)
    values = given[defined]
    if np.any((values < 0) | (values > 1)):
        raise InputError("a p-value outside 0 to 1 was given.")
    q = np.full(given.shape, np.nan)
    if not len(values):
        return q
    order = np.argsort(values, kind="stable")
    ranks = np.arange(1, len(values) + 1)
    raised = values[order] * len(values) / ranks * np.sum(1 / ranks)
    monotone = np.minimum(np.minimum.accumulate(raised[::-1])[::-1], 1.0)
    adjusted = np.empty_like(monotone)
    adjusted[order] = monotone
    q[defined] = adjusted
    return q
