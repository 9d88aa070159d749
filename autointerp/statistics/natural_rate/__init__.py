"""Precision and recall at the natural rate, from a judge's verdicts on few windows a latent (METHODS 4)."""

from __future__ import annotations

from autointerp.statistics.natural_rate.audit import AuditCheck, check_audit
from autointerp.statistics.natural_rate.average_precision import (
    AveragePrecision,
    PooledProbabilities,
    average_precision,
    pooled_probabilities,
    weighted_average_precision,
)
from autointerp.statistics.natural_rate.basis import JudgeResolution, PrecisionBasis, best_precision, precision_basis
from autointerp.statistics.natural_rate.counts import ScreenCounts, VerdictCounts, verdict_counts
from autointerp.statistics.natural_rate.estimates import NaturalRates, estimate_natural_rates
from autointerp.statistics.natural_rate.expectation import (
    TYPICAL,
    ExpectedWidths,
    PlannedWindows,
    SupposedPopulation,
    expected_widths,
)
from autointerp.statistics.natural_rate.figures import Estimate, posterior_figures, rate_draws, stratum_draws
from autointerp.statistics.natural_rate.own_windows import clopper_pearson, own_precision
from autointerp.statistics.natural_rate.posterior import INTEGRATED, Priors, RatesPosterior, fit_rates
from autointerp.statistics.natural_rate.stopping import StoppingRule
from autointerp.statistics.natural_rate.weighted_recall import (
    above_threshold,
    precision_above,
    proportion,
    weighted_recall,
)

__all__ = [
    "INTEGRATED",
    "TYPICAL",
    "AuditCheck",
    "AveragePrecision",
    "Estimate",
    "ExpectedWidths",
    "JudgeResolution",
    "NaturalRates",
    "PlannedWindows",
    "PooledProbabilities",
    "PrecisionBasis",
    "Priors",
    "RatesPosterior",
    "ScreenCounts",
    "StoppingRule",
    "SupposedPopulation",
    "VerdictCounts",
    "above_threshold",
    "average_precision",
    "best_precision",
    "check_audit",
    "clopper_pearson",
    "estimate_natural_rates",
    "expected_widths",
    "fit_rates",
    "own_precision",
    "pooled_probabilities",
    "posterior_figures",
    "precision_above",
    "precision_basis",
    "proportion",
    "rate_draws",
    "stratum_draws",
    "verdict_counts",
    "weighted_average_precision",
    "weighted_recall",
]
