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


def benjamini_hochberg(p: ArrayLike, num_tests: int | None = None) -> NDArray[np.float64]:
    """q-values [L'] of p-values [L']; ``num_tests`` L >= L' counts further tests whose p is 1.

    Holds the false discovery rate where the tests are independent or depend on each other positively (Benjamini & Hochberg
    1995, *J. R. Statist. Soc. B* 57), and sorts only what is given. Raises :class:`InputError` outside 0 to 1, for NaN, and for
    fewer tests than p-values.
    """
    values = np.asarray(p, dtype=np.float64)
    tests = len(values) if num_tests is None else num_tests
    if tests < len(values):
        raise InputError(f"{len(values)} p-values of {tests} tests were given; give at most one a test.")
    if not np.all((values >= 0) & (values <= 1)):
        raise InputError("a p-value outside 0 to 1 was given.")
    order = np.argsort(values, kind="stable")
    raised = values[order] * tests / np.arange(1, len(values) + 1)
    q = np.empty_like(raised)
    q[order] = np.minimum(np.minimum.accumulate(raised[::-1])[::-1], 1.0)
    return q
