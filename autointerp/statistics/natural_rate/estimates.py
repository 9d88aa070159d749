"""Precision, recall and F1 of a run's labels at the natural rate, with intervals (METHODS 4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.statistics.natural_rate.audit import check_audit
from autointerp.statistics.natural_rate.basis import JudgeResolution, best_precision, fit_holds, precision_basis
from autointerp.statistics.natural_rate.counts import VerdictCounts
from autointerp.statistics.natural_rate.figures import Estimate, posterior_figures
from autointerp.statistics.natural_rate.grid import Floats
from autointerp.statistics.natural_rate.own_windows import own_precision
from autointerp.statistics.natural_rate.posterior import INTEGRATED, Priors, fit_rates
from autointerp.statistics.natural_rate.weighted_recall import proportion


@dataclass(frozen=True, slots=True, eq=False)
class NaturalRates:
    """What a run's verdicts say of its labels as this judge reads them, on the text that the subject really reads."""

    precision: Estimate
    recall: Estimate
    f1: Estimate
    near_precision: Estimate
    """Precision if only firing windows and the near strata counted."""
    bulk_rate: Estimate
    """Share of bulk windows on which the judge would say yes and confirm it."""
    precision_own_low: Floats
    """Bounds from the latent's own windows alone, [L]."""
    precision_own_high: Floats
    precision_basis: NDArray[np.object_]
    """:class:`PrecisionBasis`, [L]."""
    best_precision: Floats
    """What a perfect label would show with this judge at this pi, [L]; 1 where the judge's false yeses were not measured."""
    prior_num_latents: int
    """Latents over which the priors were fitted."""
    prior_num_yes: float
    """Confirmed yeses on bulk windows among their verdicts: what the fit goes by."""
    audit_covered: int | None
    """Audit latents whose further windows fell where the rest of the run said they would; None without a check."""
    audit_total: int | None
    audit_position: float | None
    """Where the audit's yeses lie among the foretold ones; .5 where the fit holds."""
    borrows: bool
    """Whether the fit over all labels can be trusted; else precision and F1 rest on each latent's own windows."""


def estimate_natural_rates(
    counts: VerdictCounts,
    seed: int,
    judge: JudgeResolution | None = None,
    audit: bool = True,
    trusted: bool = True,
    priors: Priors = INTEGRATED,
    level: float = 0.95,
) -> NaturalRates:
    """Estimates for all latents of a run.

    ``audit=False`` leaves out the second fit that checks the first, for rounds in between. ``trusted=False``: another fit to the same
    latents failed its check, so nothing is borrowed.
    """
    posterior = fit_rates(counts, seed, priors)
    precision, _, f1, near, bulk = posterior_figures(counts, posterior, level)
    # Recall needs no draws: one beta over all firing windows, since they are judged in proportion to their quantiles.
    recall = proportion(counts.firing_yes, counts.firing_judged, level)
    check = check_audit(counts, seed, priors, level) if audit else None
    own = own_precision(counts, recall.median, level)
    best = best_precision(counts.pi, judge)
    bulk_yes = counts.num_bulk_yes if trusted else 0.0
    basis = precision_basis(precision.width, own[1] - own[0], best, bulk_yes, check)
    borrows = fit_holds(len(counts), bulk_yes, check)
    if not borrows:
        # then nothing is borrowed: what its own windows say of a latent is all that is said of it
        precision = Estimate(np.clip(precision.median, *own), *own)
        f1 = _of_own(precision, recall)
    return NaturalRates(
        precision=precision,
        recall=recall,
        f1=f1,
        near_precision=near,
        bulk_rate=bulk,
        precision_own_low=own[0],
        precision_own_high=own[1],
        precision_basis=basis,
        best_precision=best,
        prior_num_latents=len(counts),
        prior_num_yes=counts.num_bulk_yes,
        audit_covered=None if check is None else check.covered,
        audit_total=None if check is None else check.total,
        audit_position=None if check is None else check.position,
        borrows=borrows,
    )


def _of_own(precision: Estimate, recall: Estimate) -> Estimate:
    """F1 from bounds of its parts: an interval that is too wide rather than too narrow."""

    def mean(p: Floats, r: Floats) -> Floats:
        return np.asarray(np.divide(2 * p * r, p + r, out=np.zeros_like(p), where=p + r > 0), dtype=np.float64)

    return Estimate(*(mean(getattr(precision, at), getattr(recall, at)) for at in ("median", "low", "high")))
