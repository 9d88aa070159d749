"""Windows of a side as they come: uniform samples of firing and of silent ones, and what one of each stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import LatentEvidence
from autointerp.sampling.firing import fires_in, sample_firing
from autointerp.sampling.scorable import kept_exemplars
from autointerp.sampling.silent import SilentStrata, sample_silent, silent_strata, uniform_counts
from autointerp.sampling.window import ShownWindow
from sae_core.hashing import seed_for
from sae_core.records import Origin


@dataclass(frozen=True, slots=True, eq=False)
class NaturalSample:
    """Uniform samples of a latent's firing and silent windows."""

    firing: list[ShownWindow]
    """Uniform among the firing windows that may be judged."""
    silent: list[ShownWindow]
    """Uniform among the silent ones, whatever their stratum."""
    rate: float
    """pi, the share of firing windows among those that may be judged."""
    share_skipped: float
    """Share of the side's windows that may not be judged."""

    @property
    def windows(self) -> list[ShownWindow]:
        """Firing ones first."""
        return [*self.firing, *self.silent]

    def weights(self, windows: Sequence[ShownWindow]) -> NDArray[np.float64]:
        """[W] what each of ``windows``, a part of the sample, stands for, with a mean of 1.

        Firing ones weigh pi together and silent ones the rest, however many of each there are.
        """
        fires = np.array([window.fires for window in windows], dtype=np.bool_)
        num_firing, num_silent = int(fires.sum()), int((~fires).sum())
        each = np.where(fires, self.rate / max(num_firing, 1), (1 - self.rate) / max(num_silent, 1))
        weights: NDArray[np.float64] = each / each.mean() if each.sum() else each
        return weights


def natural_sample(evidence: LatentEvidence, firing: int, silent: int, seed: int) -> NaturalSample:
    """At most ``firing`` and ``silent`` windows of the scored side."""
    side, latent = evidence.scored_side, evidence.latent
    strata = silent_strata(evidence, side)
    rng = np.random.default_rng(seed_for(seed, "silent strata", latent))
    counts = uniform_counts(strata, silent, rng)
    return NaturalSample(
        sample_firing(evidence, side, firing, seed),
        sample_silent(strata, evidence, counts, seed),
        firing_rate(evidence, strata),
        strata.share_skipped,
    )


def firing_rate(evidence: LatentEvidence, strata: SilentStrata) -> float:
    """pi: the share of firing windows among the windows of the strata's side that may be judged, 0 where there are none.

    Of a census it is counted. A rare latent fires in few windows of a pool that is a sample, so there it is the exact count
    of the whole side, times the share of firing windows that may be judged over that of all windows.
    """
    side, pool = strata.side, evidence.store.pool(strata.side)
    whole = strata.num_firing + strata.num_silent
    if not whole:
        return 0.0
    if pool.is_census:
        return strata.num_firing / whole
    counted = evidence.num_windows_firing(side) / max(1, int(evidence.store.statistics.num_windows[side]))
    in_pool = int(fires_in(pool, evidence.latent).sum())
    stored = evidence.store.exemplars(evidence.latent, side, Origin.SAMPLED)
    # whichever uniform sample of its firing windows is the larger one
    if in_pool >= len(stored):
        kept = strata.num_firing / in_pool if in_pool else 1.0
    else:
        kept = len(kept_exemplars(evidence, side, stored)) / len(stored)
    return min(1.0, counted * kept / (1.0 - strata.share_skipped))
