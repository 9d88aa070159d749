"""The check of the fit: do the audit latents' many bulk windows say what the rest of the run said of them beforehand?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autointerp.statistics.natural_rate.counts import BULK, NUM_STRATA, VerdictCounts
from autointerp.statistics.natural_rate.figures import rate_draws
from autointerp.statistics.natural_rate.posterior import INTEGRATED, Priors, fit_rates
from sae_core.hashing import seed_for

MIN_SHARE = 54 / 60
"""Of the audit latents inside their 95% interval: passes with chance .97 at a true coverage of .95, .18 at .85."""


@dataclass(frozen=True, slots=True)
class AuditCheck:
    """How many audit latents lie in the interval that the fit without their audit windows gave."""

    covered: int
    total: int
    position: float
    """Mean share of the foretold numbers of yeses that lie below the true one, ties halved; .5 where the fit holds, NaN without audit.

    The interval of a latent that says yes to one window in 100,000 holds its 0 of 1,500 whatever the fit believes below one in 1,000; a fit
    that believes in too many yeses still shows here, as a value below .5.
    """

    @property
    def passed(self) -> bool:
        """Whether the fit holds; also where there was nothing to check it by."""
        return self.covered >= MIN_SHARE * self.total


def check_audit(counts: VerdictCounts, seed: int, priors: Priors = INTEGRATED, level: float = 0.95) -> AuditCheck:
    """Fit without the audit's windows and foretell their yeses.

    The interval is that of the number of yeses among the audit's windows, and not of the precision, which
    the audit's windows themselves tell only to within an error of their own.
    """
    latents = np.flatnonzero(counts.audit_judged > 0)
    if not len(latents):
        return AuditCheck(0, 0, float("nan"))
    blind = counts.without_audit()
    rates = rate_draws(blind, fit_rates(blind, seed, priors), latents)[:, :, BULK]
    rng = np.random.default_rng(seed_for(seed, "natural rate: audit", NUM_STRATA))
    low, high, position = np.empty(len(latents)), np.empty(len(latents)), np.empty(len(latents))
    yes = counts.audit_yes[latents]
    judged = np.round(counts.audit_judged[latents]).astype(np.int64)
    # The latents' own values say which random numbers they get, so that their order does not matter.
    order = np.lexsort([counts.audit_yes[latents], judged, counts.pi[latents]])
    for row in order:
        foretold = rng.binomial(judged[row], np.repeat(rates[row], 4))
        low[row], high[row] = np.quantile(foretold, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
        position[row] = np.mean(foretold < yes[row]) + np.mean(foretold == yes[row]) / 2
    covered = int(np.sum((yes >= low) & (yes <= high)))
    return AuditCheck(covered, len(latents), float(np.mean(np.sort(position))))
