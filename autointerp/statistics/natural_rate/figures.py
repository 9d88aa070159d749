"""Figures of every latent from draws of the same posterior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.statistics.natural_rate.counts import BULK, NUM_STRATA, VerdictCounts
from autointerp.statistics.natural_rate.draw_tables import draw_tables
from autointerp.statistics.natural_rate.grid import Floats
from autointerp.statistics.natural_rate.posterior import RatesPosterior

BLOCK = 65_536
"""Latents whose figures are held at once beside the results."""


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A figure's posterior median and its interval, each [L]."""

    median: Floats
    low: Floats
    high: Floats

    @property
    def width(self) -> Floats:
        """Of the interval, [L]."""
        return self.high - self.low


def posterior_figures(counts: VerdictCounts, posterior: RatesPosterior, level: float = 0.95) -> list[Estimate]:
    """Precision, recall, F1, near precision and bulk rate from the same draws."""
    from autointerp.statistics.natural_rate.drawing import summarise

    ranks = _ranks(posterior.num_draws, level)
    found = np.empty((5, 3, len(counts)))
    tables = draw_tables(counts, posterior)
    for start in range(0, len(counts), BLOCK):
        chosen = np.arange(start, min(start + BLOCK, len(counts)))
        out = np.empty((len(chosen), 5, 3))
        summarise(
            chosen, tables, counts.pi, counts.pool, posterior.recall_class, posterior.recall_by_class,
            posterior.pool_scores, ranks, out,
        )  # fmt: skip
        found[:, :, start : start + len(chosen)] = out.transpose(1, 2, 0)
    return [Estimate(figure[1], figure[0], figure[2]) for figure in found]


def rate_draws(counts: VerdictCounts, posterior: RatesPosterior, latents: NDArray[np.intp]) -> Floats:
    """Posterior draws of the R rates of some latents, [K, S, R]."""
    from autointerp.statistics.natural_rate.drawing import draw_rates

    out = np.empty((len(latents), posterior.num_draws, len(posterior.classes)))
    draw_rates(np.asarray(latents, dtype=np.int64), draw_tables(counts, posterior), out)
    return out


def stratum_draws(counts: VerdictCounts, posterior: RatesPosterior, latents: NDArray[np.intp]) -> Floats:
    """The same by stratum, [K, S, 4]: where there is a screen, what it flags and what it misses are put together."""
    rates = rate_draws(counts, posterior, latents)
    found = rates[:, :, :NUM_STRATA].copy()
    if counts.screen is not None:
        confirmed, flagged = rates[:, :, NUM_STRATA], rates[:, :, NUM_STRATA + 1]
        found[:, :, BULK] = flagged * confirmed + (1 - flagged) * found[:, :, BULK]
    return found


def _ranks(num_draws: int, level: float) -> NDArray[np.int64]:
    tail = (1 - level) / 2
    return np.array([int(tail * num_draws), num_draws // 2, num_draws - 1 - int(tail * num_draws)], dtype=np.int64)
