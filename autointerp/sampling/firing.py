"""A uniform random sample of the windows in which a latent fires."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import LatentEvidence
from autointerp.sampling.scorable import kept_exemplars, kept_windows
from autointerp.sampling.window import ShownWindow, Stratum, of_exemplar, of_pool
from sae_core.hashing import seed_for
from sae_core.records import Origin, Side, WindowPool


def fires_in(pool: WindowPool, latent: int) -> NDArray[np.bool_]:
    """[W] windows of a pool in which the latent fires, at whatever sign."""
    out = np.zeros(len(pool.tokens), dtype=np.bool_)
    out[pool.activations(latent)[0]] = True
    return out


def firing_rows(evidence: LatentEvidence, side: Side) -> NDArray[np.intp]:
    """Rows of the side's pool in which the latent fires and that may be judged, ascending."""
    return np.flatnonzero(fires_in(evidence.store.pool(side), evidence.latent) & kept_windows(evidence, side))


def sample_firing(evidence: LatentEvidence, side: Side, count: int, seed: int) -> list[ShownWindow]:
    """At most ``count`` windows of the latent's firing ones on a side that may be judged, in random order.

    They come from the pool if it holds so many of them, else from the stored uniform sample if that has more: both are
    uniform, so rates over them are rates over all firing windows.
    """
    pool, latent = evidence.store.pool(side), evidence.latent
    rng = np.random.default_rng(seed_for(seed, "firing", latent, int(side)))
    rows = firing_rows(evidence, side)
    if len(rows) < count and not pool.is_census:
        stored = kept_exemplars(evidence, side, evidence.store.exemplars(latent, side, Origin.SAMPLED))
        if len(stored) > len(rows):
            special = evidence.store.pieces.special
            return [of_exemplar(stored[i], special) for i in rng.permutation(len(stored))[:count]]
    return [of_pool(pool, int(row), latent, Stratum.FIRING) for row in rng.permutation(rows)[:count]]
