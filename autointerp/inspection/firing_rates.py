"""Latents counted by how often they fire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sae_core.health import CoderHealth


def rate_histogram(health: CoderHealth) -> dict[str, Any]:
    """The histogram for JSON: six cells a decade, and those that never fired."""
    counts, edges = rate_cells(health, 6)
    never = int((health.fire_count == 0).sum())
    return {"log10_edges": edges.round(6).tolist(), "num_latents": counts.tolist(), "num_never": never}


def rate_cells(health: CoderHealth, cells_per_decade: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Latents that fired, by log10 of their firing rate: counts, and edges from one token in all of them to every token."""
    decades = max(np.ceil(np.log10(health.num_tokens) * cells_per_decade), 1) / cells_per_decade
    edges = np.linspace(-decades, 0.0, round(decades * cells_per_decade) + 1)
    rates = np.log10(health.fire_rate[health.fire_count > 0])
    # a rate on the lowest edge may lie a rounding below it
    counts, _ = np.histogram(np.clip(rates, edges[0], 0.0), bins=edges)
    return counts, edges
