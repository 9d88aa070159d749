"""What interval to expect, before a token is spent: the run's own estimator on simulated verdicts of a stated population."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from autointerp.statistics.natural_rate.counts import BULK, NUM_STRATA, ScreenCounts, VerdictCounts, verdict_counts
from autointerp.statistics.natural_rate.figures import posterior_figures
from autointerp.statistics.natural_rate.grid import Floats
from autointerp.statistics.natural_rate.own_windows import own_precision
from autointerp.statistics.natural_rate.posterior import fit_rates
from sae_core.errors import InputError
from sae_core.hashing import seed_for


@dataclass(frozen=True, slots=True)
class SupposedPopulation:
    """Labels as they are supposed to be before anything is known of them; every figure of an expectation rests on this."""

    log10_rate: tuple[float, ...] = (-1.7, -2.0, -1.8, -3.5)
    """Mean of log10 of the share of silent windows that would get a yes, by stratum: median 2%, 1%, 1.6% and .03%."""
    spread: tuple[float, ...] = (0.6, 0.6, 0.6, 0.8)
    """Its standard deviation."""
    weight: tuple[float, ...] = (0.03, 0.02, 0.01, 0.94)
    """Share of each stratum among silent windows."""
    recall: tuple[float, float] = (8.0, 2.0)
    """Parameters of a beta distribution, mean .8."""
    screen_sees: float = 0.8
    """Share of the windows which the judge would call a match that a cheap screen flags."""
    screen_cries: float = 0.005
    """Share of the others that it flags."""


@dataclass(frozen=True, slots=True)
class PlannedWindows:
    """What a run would judge of a latent."""

    firing: int = 40
    silent: tuple[int, int, int, int] = (24, 24, 24, 88)
    """Near by neighbour, holding the token, near by embedding, bulk."""
    audit_latents: int = 60
    audit: int = 1_500
    """Bulk windows of an audit latent."""
    screened: int = 0
    """Bulk windows shown to a cheap screen."""
    verified: int = 10
    """Flagged windows verified, at most."""
    pool: int = 20_000
    """Windows of the pool."""


@dataclass(frozen=True, slots=True, eq=False)
class ExpectedWidths:
    """Width of the 95% interval of precision to expect at each firing rate."""

    pi: Floats
    """[P]."""
    median: Floats
    """[P]."""
    low: Floats
    """A tenth of the latents has a narrower interval, [P]."""
    high: Floats
    """A tenth has a wider one, [P]."""
    own: Floats
    """Median width from the latent's own windows alone, nothing borrowed, [P]."""


TYPICAL = SupposedPopulation()


def expected_widths(
    pi: ArrayLike,
    planned: PlannedWindows,
    seed: int,
    num_latents: int = 1_000,
    population: SupposedPopulation = TYPICAL,
) -> ExpectedWidths:
    """Expectation at every ``pi`` [P] for a run of ``num_latents`` (a thousand stand for more: the fit is hardly better with more)."""
    wanted = np.asarray(pi, dtype=np.float64)
    if wanted.ndim != 1 or not len(wanted) or not np.all((wanted > 0) & (wanted < 1)):
        raise InputError("give the firing rates to plan for, each above 0 and below 1.")
    if num_latents < 1:
        raise InputError(f"a run of {num_latents} latents was given; give at least one.")
    # Every rate needs some latents to be seen with, however few the run has.
    size = max(min(num_latents, 1_000), 20 * len(wanted))
    which = np.arange(size) % len(wanted)
    counts = supposed_verdicts(wanted[which], planned, population, seed)
    precision = posterior_figures(counts, fit_rates(counts, seed))[0]
    own_low, own_high = own_precision(counts, (counts.firing_yes + 0.5) / (counts.firing_judged + 1))
    ordinary = counts.audit_judged == 0
    spread = np.full((4, len(wanted)), np.nan)
    for place in range(len(wanted)):
        mine = which == place
        mine = mine & ordinary if np.any(mine & ordinary) else mine
        spread[:3, place] = np.quantile(precision.width[mine], [0.5, 0.1, 0.9])
        spread[3, place] = np.median((own_high - own_low)[mine])
    return ExpectedWidths(wanted, *spread)


def supposed_verdicts(pi: Floats, planned: PlannedWindows, population: SupposedPopulation, seed: int) -> VerdictCounts:
    """Verdicts of a simulated run on latents of these firing rates, [L]."""
    rng = np.random.default_rng(seed_for(seed, "natural rate: expectation", 0))
    num = len(pi)
    rate = np.minimum(10 ** rng.normal(population.log10_rate, population.spread, (num, NUM_STRATA)), 0.9)
    pool = rng.multinomial(np.maximum(np.round(planned.pool * (1 - pi)), 1).astype(np.int64), population.weight)
    firing = np.full(num, planned.firing)
    yes_firing = rng.binomial(firing, rng.beta(*population.recall, num))
    judged = np.minimum(np.broadcast_to(planned.silent, (num, NUM_STRATA)), pool)
    audited = np.zeros(num, dtype=np.int64)
    audited[rng.permutation(num)[: planned.audit_latents]] = planned.audit
    screen = None
    if planned.screened:
        bulk = rate[:, BULK]
        flag = population.screen_sees * bulk + population.screen_cries * (1 - bulk)
        flagged = rng.binomial(planned.screened, flag)
        verified = np.minimum(flagged, planned.verified)
        confirmed = rng.binomial(verified, population.screen_sees * bulk / flag)
        screen = ScreenCounts(
            *(np.asarray(x, dtype=np.float64) for x in (np.full(num, planned.screened), flagged, verified, confirmed))
        )
        rate[:, BULK] = (1 - population.screen_sees) * bulk / (1 - flag)
    yes = rng.binomial(judged, rate)
    audit_yes = rng.binomial(audited, rate[:, BULK])
    return verdict_counts(pi, firing, yes_firing, pool, judged, yes, audited, audit_yes, screen)
