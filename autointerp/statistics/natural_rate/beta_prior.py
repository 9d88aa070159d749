"""Part (a): a beta prior over the run's latents whose mean and size are not known (METHODS 4).

Plugged in at its likeliest, such a prior collapses: at few yeses the fit often sees no spread and becomes a point. Here every mean
and size of a grid stays in, with the weight that the run's verdicts give it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.special import betainc, betaincc, expit

from autointerp.statistics.natural_rate.grid import EDGES, Floats
from autointerp.statistics.natural_rate.rate_classes import RateClasses

MEANS: Floats = np.geomspace(1e-6, 0.9, 28)
SIZES: Floats = np.geomspace(0.1, 1e4, 16)
"""Of a Beta(mean·size, (1 - mean)·size)."""
NEGLIGIBLE = 1e-5
"""Hyperparameters with less weight than this are left out."""
LEAST_MASS = 1e-290
"""Of a cell of rates: a latent unlike everything that a prior expects is known by its own windows, and not by rounding."""


@cache
def prior_masses() -> Floats:
    """Masses of every prior on the grid of rates, [H, G], H = means x sizes."""
    mean, size = (column.ravel() for column in np.meshgrid(MEANS, SIZES, indexing="ij"))
    inner = expit(EDGES[1:-1])
    shape = (mean * size)[:, None], ((1 - mean) * size)[:, None]
    none, whole = np.zeros((len(mean), 1)), np.ones((len(mean), 1))
    below = np.concatenate([none, betainc(*shape, inner), whole], axis=1)
    above = np.concatenate([whole, betaincc(*shape, inner), none], axis=1)
    # Differences of the shares above where most lies below: else rounding cuts off the tail in which a label that is much broader than others lies.
    masses = np.maximum(np.where(below[:, 1:] < 0.5, np.diff(below, axis=1), -np.diff(above, axis=1)), LEAST_MASS)
    masses.setflags(write=False)
    return np.asarray(masses, dtype=np.float64)


def hyperparameter_weights(likelihood_CG: Floats, count_C: Floats) -> Floats:
    """Posterior of the grid of hyperparameters, [H], even before the verdicts.

    ``likelihood_CG`` of the classes, up to a factor each, and ``count_C`` latents in each.
    """
    evidence = np.log(np.maximum(prior_masses() @ likelihood_CG.T, 1e-300)) @ count_C
    weights = np.exp(evidence - evidence.max())
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def posterior_masses(classes: RateClasses, rng: np.random.Generator) -> Floats:
    """Posterior of each class's rate, hyperparameters integrated out, [C, G]; needs no chance."""
    likelihood_CG, count_C = classes.likelihood, classes.count
    weights = hyperparameter_weights(likelihood_CG, count_C)
    total = np.zeros_like(likelihood_CG)
    for row in np.flatnonzero(weights > NEGLIGIBLE):
        product = likelihood_CG * prior_masses()[row]
        total += weights[row] * product / product.sum(axis=1, keepdims=True)
    return np.asarray(total / total.sum(axis=1, keepdims=True), dtype=np.float64)
