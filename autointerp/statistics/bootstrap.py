"""Bootstrap resamples, and the paired mean difference by which labels are compared with their controls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_core.errors import InputError, NonFiniteError

_BLOCK_CELLS = 4_000_000
"""Cells of a block of resamples: 32 MB of counts, whatever the number of units."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of ``first - second`` over pairs with its bootstrap interval."""

    mean: float | None
    """None without pairs."""
    low: float | None
    """None below 2 pairs."""
    high: float | None
    num_pairs: int

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low is not None and self.low > 0


def resample_counts(
    num_units: int, resamples: int, rng: np.random.Generator, block_cells: int = _BLOCK_CELLS
) -> Iterator[NDArray[np.float64]]:
    """Blocks [b, units] of how often each unit is drawn in each of ``resamples`` samples with replacement.

    The draws do not depend on the block size.
    """
    block = max(1, block_cells // max(num_units, 1))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(num_units, size=(rows, num_units))
        drawn += np.arange(rows)[:, None] * num_units
        yield np.bincount(drawn.ravel(), minlength=rows * num_units).reshape(rows, num_units).astype(np.float64)


def paired_difference(
    first: ArrayLike, second: ArrayLike, rng: np.random.Generator, resamples: int = 2000, level: float = 0.95
) -> PairedDifference:
    """Mean of ``first - second``, each [pairs], with the percentile interval of a bootstrap over pairs (latents).

    What counts where a figure is not defined is the caller's to decide: NaN raises :class:`NonFiniteError`.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 1 or one.shape != two.shape:
        raise InputError(f"figures of shapes {one.shape} and {two.shape} were given; give two of the same length.")
    difference = one - two
    if not np.isfinite(difference).all():
        raise NonFiniteError("a paired difference is NaN or infinite; say first what an undefined figure counts as.")
    if len(difference) < 2:
        return PairedDifference(float(difference[0]) if len(difference) else None, None, None, len(difference))
    means = np.concatenate(
        [counts @ difference / len(difference) for counts in resample_counts(len(difference), resamples, rng)]
    )
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return PairedDifference(float(difference.mean()), float(low), float(high), len(difference))
