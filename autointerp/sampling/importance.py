"""Windows drawn in proportion to how strongly a latent fires in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autointerp.sampling.window import ShownWindow


def importance_weighted(
    windows: Sequence[ShownWindow], count: int, rng: np.random.Generator, *, below: float = np.inf
) -> list[ShownWindow]:
    """At most ``count`` of ``windows``, drawn without replacement in proportion to their squared activations.

    Activations of the magnitude ``below`` and above count nothing, so that what is taken is disjoint from the strongest.
    """
    sizes = [np.abs(window.activations.astype(np.float64)) for window in windows]
    weights = np.array([float(np.square(size[size < below]).sum()) for size in sizes])
    possible = np.flatnonzero(weights > 0)
    if not len(possible):
        return []
    shares = weights[possible] / weights[possible].sum()
    drawn = rng.choice(possible, size=min(count, len(possible)), replace=False, p=shares)
    return [windows[int(index)] for index in drawn]
