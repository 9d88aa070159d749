"""The posterior of every rate of every latent: equal parts of the three priors, ready to be drawn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

from autointerp.statistics.natural_rate import beta_prior, cell_mixture
from autointerp.statistics.natural_rate.counts import NUM_STRATA, VerdictCounts
from autointerp.statistics.natural_rate.grid import Floats, quantiles
from autointerp.statistics.natural_rate.rate_classes import RateClasses, rate_classes
from autointerp.statistics.natural_rate.shared_factor import FactorModel, fit_shared_factor
from sae_core.hashing import seed_for

ClassPosterior = Callable[[RateClasses, np.random.Generator], Floats]
"""Masses [C, G] of each class's rate, given the counts of all classes."""


@dataclass(frozen=True, slots=True)
class Priors:
    """What is believed of the latents' rates before the verdicts; each prior gives an equal part of the draws.

    Equal parts, and not weights by how well each fits: what decides is how far the rates lie below anything that was seen, where every prior fits
    and each believes something else.
    """

    parts: tuple[ClassPosterior, ...] = (beta_prior.posterior_masses, cell_mixture.posterior_masses)
    """Priors that treat all latents alike, (a) and (b)."""
    factor_from: float = 500
    """Fewer latents than these do not tell the hyperparameters of the shared factor, part (c)."""
    num_draws: int = 200
    """Of each part."""


INTEGRATED = Priors()
"""The product's own."""


@dataclass(frozen=True, slots=True, eq=False)
class RatesPosterior:
    """What to draw from: S draws, the same random numbers for every latent, so that no latent depends on its neighbours in the arrays."""

    classes: tuple[RateClasses, ...]
    """Of the R rates."""
    by_class: NDArray[np.float32]
    """Draws of parts (a) and (b) for the classes of each rate, [R, C, S_ab]; classes are padded."""
    factor: FactorModel | None
    recall_class: NDArray[np.int32]
    """[L]."""
    recall_by_class: Floats
    """Draws of recall, [C', S]."""
    scores: Floats
    """Standard normal numbers of part (c), [S_c, R + 1], the last for the factor."""
    pool_scores: Floats
    """Standard normal numbers by which the pool's counts stand for the corpus, [S, 4]."""

    @property
    def num_draws(self) -> int:
        """S."""
        return len(self.pool_scores)


def fit_rates(counts: VerdictCounts, seed: int, priors: Priors = INTEGRATED) -> RatesPosterior:
    """Fit all priors to a run's verdicts. The result depends on ``seed`` and on the set of latents, not on their order."""
    groups = counts.groups()
    rates = [rate_classes(*pair, group_L=groups.get(h)) for h, pair in enumerate(counts.rates())]
    with_factor = len(counts) >= priors.factor_from
    part, num_parts = priors.num_draws, len(priors.parts) + with_factor
    widest = max(len(rate.count) for rate in rates)
    by_class = np.zeros((len(rates), widest, len(priors.parts) * part), dtype=np.float32)
    for h, rate in enumerate(rates):
        rng = np.random.default_rng(seed_for(seed, "natural rate: classes", h))
        for place, posterior in enumerate(priors.parts):
            masses = np.empty_like(rate.likelihood)
            for group in np.unique(rate.group):
                masses[rate.group == group] = posterior(rate.of_group(group), rng)
            drawn = quantiles(masses, even_shares(part, rng))
            by_class[h, : len(rate.count), place * part : (place + 1) * part] = drawn
    rng = np.random.default_rng(seed_for(seed, "natural rate: draws", 0))
    recall, recall_class = np.unique(counts.firing_judged + 1j * counts.firing_yes, return_inverse=True)
    shares = np.concatenate([even_shares(part, rng) for _ in range(num_parts)])
    recalls = betaincinv(recall.imag[:, None] + 0.5, (recall.real - recall.imag)[:, None] + 0.5, shares)
    factor = None
    if with_factor:
        fitting = np.random.default_rng(seed_for(seed, "natural rate: shared factor", 0))
        factor = fit_shared_factor(np.log10(counts.pi), rates, fitting)
    return RatesPosterior(
        classes=tuple(rates),
        by_class=by_class,
        factor=factor,
        recall_class=recall_class.astype(np.int32),
        recall_by_class=np.asarray(recalls, dtype=np.float64),
        scores=_scores(part if with_factor else 0, len(rates) + 1, rng),
        pool_scores=np.concatenate([_scores(part, NUM_STRATA, rng) for _ in range(num_parts)]),
    )


def even_shares(number: int, rng: np.random.Generator) -> Floats:
    """One number in each of ``number`` equal parts of 0 to 1, in random order: quantiles are then nearly free of chance."""
    return np.asarray((rng.permutation(number) + rng.random(number)) / number, dtype=np.float64)


def _scores(number: int, columns: int, rng: np.random.Generator) -> Floats:
    found = np.empty((number, columns))
    for column in range(columns):
        found[:, column] = ndtri(even_shares(number, rng))
    return found
