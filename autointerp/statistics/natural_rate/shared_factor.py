"""Part (c): a logistic model with one hidden broadness for all rates of a latent, and a trend with log pi (METHODS 4).

::

    logit r_h = a_h + s_h·z + λ_h·f + σ_h·ε_h        z = log10 pi - mean, f and ε_h standard normal

Parts (a) and (b) know neither that frequent latents may have other rates than rare ones nor that a label that is
too broad near by is likely to be too broad in the bulk. Intervals that ignore it hold on average, and fail in a decade of pi.

f is summed over nodes; r_h, given everything else, over the grid of rates. What is left, four hyperparameters a rate, is
sampled by Metropolis steps, a rate at a time. σ_h lies on a short list, so that the sums over the grid are made once for
each of its values and looked up afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from autointerp.statistics.natural_rate.grid import EDGES, LOGITS, STEP, Floats
from autointerp.statistics.natural_rate.rate_classes import RateClasses

Singles = NDArray[np.float32]

SPREADS: Floats = np.geomspace(0.3, 5.0, 24)
"""Values of σ_h."""
CENTRES: Floats = np.arange(-22.0, 8.01, 0.125)
"""Values of a + s·z + λ·f at which sums over the grid are kept."""
COARSE = 4
"""Of the centres, one in so many has quantiles."""
NODES: Floats = np.linspace(-2.8, 2.8, 13)
"""Values of f."""
SCORES: Floats = np.linspace(-2.6, 2.6, 21)
"""Normal scores at which quantiles of a rate are kept; between them the quantiles are nearly straight."""
MEAN_OF_LEVEL, SD_OF_LEVEL = -6.0, 3.0
SD_OF_TREND = 2.0
"""In logits a decade of pi; proportional to pi is 2.3."""
SD_OF_LOADING = 1.5
SPREAD_SCALE = 2.0
"""σ_h has a half-normal prior of this scale."""
SWEEPS, BURN_IN = 1_000, 400
NUM_HYPERPARAMETERS = 40
MAX_LATENTS = 3_000
"""The hyperparameters of more latents are sampled from so many of them."""


@dataclass(frozen=True, slots=True, eq=False)
class FactorModel:
    """Draws of the hyperparameters of R rates, J of them, and the tables to look up what they say of a latent."""

    level: Floats
    """a, [J, R]."""
    trend: Floats
    """s, [J, R]."""
    loading: Floats
    """λ, [J, R]."""
    spread: NDArray[np.int64]
    """Index into :data:`SPREADS`, [J, R]."""
    drawn_spread: NDArray[np.int64]
    """The same as an index into the second axis of ``log_quantiles``, [J, R]."""
    mean_log_pi: float
    evidence: Singles
    """Mean likelihood of a class, given rate, spread and centre, [R, spreads, C, centres]; classes are padded."""
    log_quantiles: Singles
    """Logit of the rate at :data:`SCORES`, given the same, at the spreads that were drawn and every fourth centre
    [R, drawn spreads, C, centres', scores]."""


def mean_likelihood(rates: list[RateClasses]) -> Singles:
    """``evidence`` of :class:`FactorModel`."""
    widest = max(len(rate.count) for rate in rates)
    found = np.zeros((len(rates), len(SPREADS), widest, len(CENTRES)), dtype=np.float32)
    for row, spread in enumerate(SPREADS):
        weights = centred_weights(CENTRES, float(spread))
        for h, rate in enumerate(rates):
            found[h, row, : len(rate.count)] = np.maximum(rate.likelihood @ weights.T, 1e-37)
    return found


def centred_weights(centres: Floats, spread: float) -> Floats:
    """Normal masses over the grid of rates around each of ``centres`` [M], [M, G]; the outermost cells take what lies beyond."""
    # Densities and not differences of shares: far above the centre those would be lost in rounding, and with them a latent's evidence.
    weights = np.exp(-0.5 * np.square((LOGITS - centres[:, None]) / spread)) * (STEP / spread / np.sqrt(2 * np.pi))
    weights[:, 0] = ndtr((EDGES[1] - centres) / spread)
    weights[:, -1] = ndtr((centres - EDGES[-2]) / spread)
    return np.asarray(weights, dtype=np.float64)


def canonical_sample(columns: list[Floats], size: int) -> NDArray[np.intp]:
    """Rows [<= size] spread evenly over the latents in the order of their own values, whatever their order in the arrays."""
    order = np.lexsort(columns[::-1])
    if len(order) <= size:
        return order
    picked = (np.arange(size) + 0.5) * len(order) / size
    return order[picked.astype(np.intp)]


def fit_shared_factor(
    log_pi_L: Floats, rates: list[RateClasses], rng: np.random.Generator, max_latents: int = MAX_LATENTS
) -> FactorModel:
    """Posterior draws of the hyperparameters; ``log_pi_L`` are logs to base 10."""
    from autointerp.statistics.natural_rate.factor_sampling import sample_hyperparameters, table_quantiles

    evidence = mean_likelihood(rates)
    chosen = canonical_sample([log_pi_L, *(rate.of_latent.astype(np.float64) for rate in rates)], max_latents)
    mean = float(np.mean(np.sort(log_pi_L)))
    z = log_pi_L[chosen] - mean
    level = np.array([np.log((rate.yes @ rate.count + 0.5) / (rate.judged @ rate.count + 1e3)) for rate in rates])
    prior = np.array([MEAN_OF_LEVEL, SD_OF_LEVEL, SD_OF_TREND, SD_OF_LOADING, SPREAD_SCALE])
    of_latent = np.stack([rate.of_latent[chosen] for rate in rates])
    drawn = sample_hyperparameters(
        evidence, of_latent, z, level, NODES, CENTRES, SPREADS, prior, SWEEPS, BURN_IN, int(rng.integers(2**31 - 1))
    )
    kept = drawn[np.linspace(0, len(drawn) - 1, NUM_HYPERPARAMETERS).astype(np.intp)]
    spread = kept[:, :, 3].astype(np.int64)
    coarse = CENTRES[::COARSE]
    drawn_spreads, place = np.unique(spread, return_inverse=True)
    quantiles = np.zeros(
        (*evidence.shape[:1], len(drawn_spreads), evidence.shape[2], len(coarse), len(SCORES)), np.float32
    )
    for row, index in enumerate(drawn_spreads):
        weights = centred_weights(coarse, float(SPREADS[index]))
        for h, rate in enumerate(rates):
            if np.any(spread[:, h] == index):
                table_quantiles(rate.likelihood, weights, LOGITS, ndtr(SCORES), quantiles[h, row])
    return FactorModel(
        level=np.ascontiguousarray(kept[:, :, 0]),
        trend=np.ascontiguousarray(kept[:, :, 1]),
        loading=np.ascontiguousarray(kept[:, :, 2]),
        spread=spread,
        drawn_spread=place.reshape(spread.shape).astype(np.int64),
        mean_log_pi=mean,
        evidence=evidence,
        log_quantiles=quantiles,
    )
