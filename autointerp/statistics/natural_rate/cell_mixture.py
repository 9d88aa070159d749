"""Part (b): a mixture of 26 log-spaced cells of rates, with Dirichlet weights that are integrated out (METHODS 4).

The plain Gibbs sampler (hand every latent to a cell, then draw the weights) moves the weights by about 1/sqrt(latents in a cell) of
themselves a sweep. Cells far below 1/(windows judged) all fit alike, so their weights may lie anywhere, and with thousands of latents the chain
would need millions of sweeps to say so: it sticks where it began, and intervals come out too narrow. Here the cells that latents
belong to are summed over, and mass is moved between two cells at a time by Metropolis steps of all sizes. That is exact for
any number of latents, because latents with the same counts enter as one class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autointerp.statistics.natural_rate.grid import LOGITS, RATES, Floats
from autointerp.statistics.natural_rate.rate_classes import RateClasses

NUM_CELLS = 26
CONCENTRATION = 10.0
"""Sum of the Dirichlet parameters, the same for every cell."""
LOWEST_RATE = 1e-6
SWEEPS, BURN_IN, THIN = 2_000, 500, 10


def cell_of_grid() -> NDArray[np.intp]:
    """Cell of every rate of the grid, [G]: equal widths in log from :data:`LOWEST_RATE`, all that is lower in the first."""
    edges = np.geomspace(LOWEST_RATE, RATES[-1] * 1.001, NUM_CELLS + 1)
    return np.clip(np.searchsorted(edges, RATES, side="right") - 1, 0, NUM_CELLS - 1)


def posterior_masses(classes: RateClasses, rng: np.random.Generator) -> Floats:
    """Posterior of each class's rate, weights of the cells integrated out, [C, G]."""
    from autointerp.statistics.natural_rate.cell_weights import sample_weights

    likelihood_CG, count_C = classes.likelihood, classes.count
    cell = cell_of_grid()
    members = np.zeros((len(LOGITS), NUM_CELLS))
    members[np.arange(len(LOGITS)), cell] = 1.0
    members /= members.sum(axis=0)
    by_cell = likelihood_CG @ members
    drawn = sample_weights(
        by_cell, count_C, CONCENTRATION / NUM_CELLS, SWEEPS, BURN_IN, THIN, int(rng.integers(2**31 - 1))
    )
    of_cell = np.zeros_like(by_cell)
    for weights in drawn:
        product = by_cell * weights
        of_cell += product / product.sum(axis=1, keepdims=True)
    of_cell /= len(drawn)
    # Within a cell the weights cancel, and the likelihood alone shapes the posterior.
    per_cell = np.divide(of_cell, by_cell, out=np.zeros_like(by_cell), where=by_cell > 0)
    masses = per_cell[:, cell] * likelihood_CG * members[np.arange(len(LOGITS)), cell]
    return np.asarray(masses / masses.sum(axis=1, keepdims=True), dtype=np.float64)
