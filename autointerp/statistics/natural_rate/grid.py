"""One grid of rates for every prior: cells of equal width in logit, the lowest of which holds all rates below it.

A prior is then a vector of masses [G], the likelihood of ``yes`` of ``judged`` windows a vector of the same length, and a
posterior their product: priors of any shape mix without a sampler of their own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit

Floats = NDArray[np.float64]

LOWEST, HIGHEST, STEP = -16.1, 3.9, 0.1
"""Logits of the outermost cells' middles (rates of 1e-7 and .98), and the width of a cell.

Below 1e-7 a rate of false yeses moves no precision at any firing rate that can be measured. The width blurs the posterior of
1,500 windows, a fifth of them yes, by 7%.
"""
LOGITS: Floats = np.arange(LOWEST, HIGHEST + STEP / 2, STEP)
"""Middles of the cells, [G]."""
EDGES: Floats = np.append(LOGITS - STEP / 2, LOGITS[-1] + STEP / 2)
"""[G + 1]; the outermost two stand for 0 and 1."""
RATES: Floats = expit(LOGITS)
"""[G]."""


def log_likelihood(judged_C: Floats, yes_C: Floats) -> Floats:
    """log of r^yes (1 - r)^(judged - yes) at every cell, [C, G]; the binomial factor, the same for every r, is left out."""
    found: Floats = np.outer(yes_C, log_expit(LOGITS)) + np.outer(judged_C - yes_C, log_expit(-LOGITS))
    return found


def normalised(likelihood_CG: Floats) -> tuple[Floats, Floats]:
    """Likelihoods with a largest value of 1 and the logs that were taken out, [C, G] and [C]."""
    top = likelihood_CG.max(axis=1)
    return np.exp(likelihood_CG - top[:, None]), top


def quantiles(mass_CG: Floats, at_S: Floats) -> Floats:
    """Rates [C, S] below which shares ``at_S`` of each row's mass lie, as if a cell's mass lay evenly in it."""
    upto = np.concatenate([np.zeros((len(mass_CG), 1)), np.cumsum(mass_CG, axis=1)], axis=1)
    upto /= upto[:, -1:]
    found = np.stack([np.interp(at_S, row, EDGES) for row in upto])
    return np.asarray(expit(found), dtype=np.float64)


__all__ = ["EDGES", "LOGITS", "RATES", "STEP", "Floats", "log_likelihood", "normalised", "quantiles"]
