"""The sampler of the cells' weights (``cell_mixture``), compiled."""

from __future__ import annotations

import numpy as np

from autointerp.statistics.natural_rate.grid import Floats
from sae_core.compiled import compiled


@compiled
def sample_weights(
    by_cell_CK: Floats, count_C: Floats, alpha: float, sweeps: int, burn_in: int, thin: int, seed: int
) -> Floats:
    """Draws of the K weights [draws, K] from their posterior under a Dirichlet prior with ``alpha`` for each.

    ``by_cell_CK`` likelihood of the classes in each cell; ``count_C`` latents of each class.
    """
    np.random.seed(seed)
    num_classes, num_cells = by_cell_CK.shape
    weights = np.full(num_cells, 1.0 / num_cells)
    mixed = np.zeros(num_classes)
    proposed = np.zeros(num_classes)
    cells = np.ascontiguousarray(by_cell_CK.T)
    # Expectation-maximisation to near the mode, so that the chain begins where the mass is.
    for _ in range(100):
        mixed[:] = 0.0
        for k in range(num_cells):
            for c in range(num_classes):
                mixed[c] += weights[k] * cells[k, c]
        total = 0.0
        for k in range(num_cells):
            share = 0.0
            for c in range(num_classes):
                share += count_C[c] * cells[k, c] / mixed[c]
            weights[k] = weights[k] * share + alpha
            total += weights[k]
        for k in range(num_cells):
            weights[k] /= total
    kept = np.zeros((max((sweeps - burn_in) // thin, 1), num_cells))
    row = 0
    for sweep in range(sweeps):
        if sweep % 50 == 0:  # rounding does not pile up
            mixed[:] = 0.0
            for k in range(num_cells):
                for c in range(num_classes):
                    mixed[c] += weights[k] * cells[k, c]
        for step in range(2 * num_cells):
            i = step % num_cells
            j = (i + 1) % num_cells if step < num_cells else np.random.randint(num_cells)
            if i == j:
                continue
            both = weights[i] + weights[j]
            share = weights[i] / both
            log_odds = np.log(weights[i]) - np.log(weights[j])
            # Steps of all sizes: some weights are known to a percent, others to within a factor of a million.
            moved = log_odds + np.random.normal() * np.exp(np.random.uniform(-4.0, 2.5))
            new_share = 1.0 / (1.0 + np.exp(-moved))
            if new_share * both < 1e-14 or (1.0 - new_share) * both < 1e-14:
                continue
            gain = alpha * (
                np.log(new_share) + np.log(1.0 - new_share) - np.log(share) - np.log(1.0 - share)
            )  # prior and the logit's Jacobian together
            shift = (new_share - share) * both
            for c in range(num_classes):
                proposed[c] = mixed[c] + shift * (cells[i, c] - cells[j, c])
                if proposed[c] <= 0.0:
                    gain = -np.inf
                    break
                gain += count_C[c] * np.log(proposed[c] / mixed[c])
            if np.log(np.random.random()) < gain:
                weights[i] = new_share * both
                weights[j] = both - weights[i]
                mixed[:] = proposed
        if sweep >= burn_in and (sweep - burn_in) % thin == 0 and row < len(kept):
            kept[row] = weights
            row += 1
    return kept[:row]
