"""Sums that do not depend on the order of their terms: 24 binary places in two integers. Torch-free.

Floating-point sums do, so that shards merged in another order would differ in their last bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PLACES = 24
"""Binary places behind the point: 6e-8, what float32 resolves at 1. Smaller activations round to 0 in a sum."""
LARGEST = 2.0**31
"""Activations beyond it cannot be added up: those of a window, 128 at most, go into one integer first."""


def as_float(high: NDArray[np.int64], low: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sums ``(high * 2**32 + low) / 2**24``."""
    return high.astype(np.float64) * 2.0 ** (32 - PLACES) + low.astype(np.float64) * 2.0**-PLACES


def carried(high: NDArray[np.int64], low: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same sums with every ``low`` brought into [0, 2**32)."""
    return high + (low >> 32), low & 0xFFFFFFFF
