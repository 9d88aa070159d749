"""Latents with the same counts are one class: what depends on the counts alone is computed once for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.statistics.natural_rate.grid import Floats, log_likelihood, normalised


@dataclass(frozen=True, slots=True, eq=False)
class RateClasses:
    """The different pairs of counts of one rate, in ascending order whatever the order of the latents."""

    judged: Floats
    """[C]."""
    yes: Floats
    """[C]."""
    count: Floats
    """Latents of each class, [C]."""
    of_latent: NDArray[np.int32]
    """Class of each latent, [L]."""
    likelihood: Floats
    """On the grid of rates, largest value 1, [C, G]."""
    group: NDArray[np.int8]
    """What the prior of each class is fitted among, ascending, [C]: classes of one group are told apart by their counts alone."""

    def of_group(self, group: int) -> RateClasses:
        """The classes of one group alone; their latents are not told."""
        rows = self.group == group
        return RateClasses(
            self.judged[rows],
            self.yes[rows],
            self.count[rows],
            np.zeros(0, np.int32),
            self.likelihood[rows],
            self.group[rows],
        )


MAX_CLASSES = 4_000
"""Above so many, counts that are nearly the same become the same: tables hold some kilobytes a class."""
STEPS = (0.02, 0.05, 0.1)
"""The first that leaves few enough."""


def rate_classes(
    judged_L: Floats, yes_L: Floats, max_classes: int = MAX_CLASSES, group_L: NDArray[np.int8] | None = None
) -> RateClasses:
    """Classes of ``yes_L`` of ``judged_L`` windows, those of each group by themselves."""
    group = np.zeros(len(judged_L), dtype=np.int8) if group_L is None else group_L
    of_latent, first = np.empty(len(judged_L), dtype=np.int32), 0
    columns: list[tuple[Floats, Floats, Floats, NDArray[np.int8]]] = []
    for one in np.unique(group):
        rows = group == one
        judged, yes, count, inverse = _classes(judged_L[rows], yes_L[rows], max_classes)
        columns.append((judged, yes, count, np.full(len(count), one)))
        of_latent[rows] = inverse + first
        first += len(count)
    judged, yes, count, groups = (np.concatenate(column) for column in zip(*columns, strict=True))
    likelihood, _ = normalised(log_likelihood(judged, yes))
    return RateClasses(judged, yes, count, of_latent, likelihood, groups)


def _classes(judged_L: Floats, yes_L: Floats, max_classes: int) -> tuple[Floats, Floats, Floats, NDArray[np.intp]]:
    """Windows, yeses and latents of each class, and the class of each latent."""
    pairs, inverse, count = np.unique(judged_L + 1j * yes_L, return_inverse=True, return_counts=True)
    for step in STEPS:
        if len(pairs) <= max_classes:
            break
        # Counts divided by a design effect of each latent's own, say.
        judged = _rounded(judged_L, step)
        rounded = judged + 1j * np.minimum(_rounded(yes_L, step), judged)
        pairs, inverse, count = np.unique(rounded, return_inverse=True, return_counts=True)
    return np.ascontiguousarray(pairs.real), np.ascontiguousarray(pairs.imag), count.astype(np.float64), inverse


def _rounded(number: Floats, step: float) -> Floats:
    """To the nearest of a list whose neighbours differ by ``step`` of (the number + 10); 0 stays."""
    return np.asarray(10 * np.expm1(step * np.round(np.log1p(number / 10) / step)), dtype=np.float64)
