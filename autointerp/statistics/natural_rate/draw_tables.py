"""What the compiled loops need to draw a latent's rates, in one tuple: numba takes named tuples, not dataclasses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.statistics.natural_rate.counts import VerdictCounts
from autointerp.statistics.natural_rate.grid import Floats
from autointerp.statistics.natural_rate.posterior import RatesPosterior
from autointerp.statistics.natural_rate.shared_factor import CENTRES, COARSE, NODES, SCORES

Singles = NDArray[np.float32]


class DrawTables(NamedTuple):
    """R rates, S draws, J draws of the shared factor's hyperparameters (none without it)."""

    of_latent: NDArray[np.int32]
    """Class of each latent, [R, L]."""
    by_class: Singles
    """Draws of the parts that treat all latents alike, [R, C, S_ab]."""
    log_pi: Floats
    """To base 10, less its mean, [L]."""
    level: Floats
    """[J, R], as are the next four."""
    trend: Floats
    loading: Floats
    spread: NDArray[np.int64]
    drawn_spread: NDArray[np.int64]
    evidence: Singles
    """[R, spreads, C, centres]."""
    quantiles: Singles
    """Of logits, [R, drawn spreads, C, coarse centres, scores]."""
    scores: Floats
    """[S_c, R + 1], the last for the factor."""
    nodes: Floats
    """Values of the factor, evenly spaced."""
    first_centre: float
    centre_step: float
    coarse_step: float
    first_score: float
    score_step: float


def draw_tables(counts: VerdictCounts, posterior: RatesPosterior) -> DrawTables:
    """The tables of a fit."""
    of_latent = np.stack([rate.of_latent for rate in posterior.classes])
    log_pi = np.log10(counts.pi)
    num_rates = len(posterior.classes)
    step = float(CENTRES[1] - CENTRES[0])
    axes = (NODES, float(CENTRES[0]), step, step * COARSE, float(SCORES[0]), float(SCORES[1] - SCORES[0]))
    factor = posterior.factor
    if factor is None:
        none, index = np.zeros((0, num_rates)), np.zeros((0, num_rates), dtype=np.int64)
        evidence, quantiles = np.zeros((num_rates, 1, 1, 2), np.float32), np.zeros((num_rates, 1, 1, 2, 2), np.float32)
        model = (none, none, none, index, index, evidence, quantiles)
    else:
        log_pi = log_pi - factor.mean_log_pi
        model = (
            factor.level,
            factor.trend,
            factor.loading,
            factor.spread,
            factor.drawn_spread,
            factor.evidence,
            factor.log_quantiles,
        )
    return DrawTables(of_latent, posterior.by_class, log_pi, *model, posterior.scores, *axes)
