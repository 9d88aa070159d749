"""How well a run will know the precision of its labels, before a token is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from autointerp.planning.natural_rate import bulk_windows
from autointerp.planning.plan import labels_of_sources
from autointerp.statistics.natural_rate.expectation import (
    TYPICAL,
    ExpectedWidths,
    PlannedWindows,
    SupposedPopulation,
    expected_widths,
)
from sae_core.records import SIDE_SHARES, Side

if TYPE_CHECKING:
    from autointerp.config import RunConfig

RATES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Shares of windows in which a latent fires."""
_SEEN, _MOST_RUNS = 1_000, 6
"""Labels on which the medians rest: a run of few labels is simulated several times."""


@dataclass(frozen=True, slots=True)
class ExpectedPrecision:
    """Widths of the 95% interval of precision to expect, and what they suppose."""

    widths: ExpectedWidths
    """At :data:`RATES`."""
    labels: int | None
    """Labels of a source, None where that is not known and supposed to be a thousand or more."""
    planned: PlannedWindows
    """Windows judged of each."""
    population: SupposedPopulation
    """What the labels are supposed to be."""
    fewest: int = 20 * len(RATES)
    """Labels of a simulated run, however few the source has."""


def expected_precision(config: RunConfig, num_latents: Sequence[int] | int | None = None) -> ExpectedPrecision | None:
    """The expectation for the smallest source of a run, all rounds done; None where nothing is estimated.

    ``num_latents`` as in ``plan_run``.
    """
    scorer = config.estimated_scorer()
    known = labels_of_sources(config, num_latents)
    if scorer is None or known == [0] * len(known or ()):
        return None
    labels = None if known is None else min(count for count in known if count)
    precision, extraction = config.precision, config.extraction
    rounds = precision.rounds - 1 if precision.screen_windows and scorer.leak_free else 0
    screened = precision.screen_windows * scorer.leak_free + rounds * precision.round_windows
    windows = int(SIDE_SHARES[Side.SCORE] * extraction.num_tokens / extraction.window_length)
    planned = PlannedWindows(
        firing=scorer.firing,
        silent=scorer.silent_by_stratum,
        audit_latents=precision.audit_latents,
        audit=precision.audit_size(_SEEN if labels is None else labels, scorer.firing + scorer.silent, scorer.per_call),
        screened=bulk_windows(screened),
        verified=precision.verified * (1 + rounds),
        pool=max(1, min(extraction.pool_size, windows)),
    )
    return ExpectedPrecision(_widths(planned, labels or _SEEN), labels, planned, TYPICAL)


def _widths(planned: PlannedWindows, labels: int) -> ExpectedWidths:
    """The mean over so many runs that their labels are :data:`_SEEN` together, :data:`_MOST_RUNS` at most."""
    runs = [
        expected_widths(RATES, planned, seed, num_latents=labels)
        for seed in range(min(_MOST_RUNS, -(-_SEEN // min(labels, _SEEN))))
    ]
    mean = {name: np.mean([getattr(run, name) for run in runs], axis=0) for name in ("median", "low", "high", "own")}
    return replace(runs[0], **mean)
