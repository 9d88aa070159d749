"""Windows drawn in equal numbers from bands of activation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autointerp.evidence import LatentEvidence
from autointerp.sampling.firing import sample_firing
from autointerp.sampling.window import ShownWindow
from sae_core.hashing import seed_for
from sae_core.records import Side


def by_quantiles(
    windows: Sequence[ShownWindow], count: int, quantiles: int, rng: np.random.Generator
) -> list[ShownWindow]:
    """``count`` of ``windows`` (all, if there are fewer), as many from each of ``quantiles`` bands of their largest activation.

    What does not divide goes to the weakest bands. A rate over them estimates the same as one over a uniform sample.
    """
    if len(windows) <= count:
        return list(windows)
    order = sorted(range(len(windows)), key=lambda index: windows[index].max_activation)
    bands = np.array_split(np.asarray(order), quantiles)
    chosen: list[int] = []
    rest: list[int] = []
    for band in bands:
        drawn = rng.permutation(band).tolist()
        take = count // quantiles
        chosen += drawn[:take]
        rest += drawn[take:]
    chosen += rest[: count - len(chosen)]
    return [windows[index] for index in rng.permutation(np.asarray(chosen, dtype=np.intp))]


_LOOKED_AT = 20
"""Windows that are looked at for each that is wanted: the bands are those of the latent, not of the sample."""


def sample_quantiles(
    evidence: LatentEvidence, side: Side, count: int, quantiles: int, seed: int
) -> tuple[list[ShownWindow], list[ShownWindow]]:
    """``count`` of the latent's firing windows of a side that may be judged, and others, at most twice as many, uniform.

    ``quantiles`` = 0 draws the first uniformly too.
    """
    if not quantiles:
        found = sample_firing(evidence, side, 3 * count, seed)
        return found[:count], found[count:]
    found = sample_firing(evidence, side, _LOOKED_AT * count, seed)
    rng = np.random.default_rng(seed_for(seed, "quantiles", evidence.latent, int(side)))
    chosen = by_quantiles(found, count, quantiles, rng)
    places = {window.place for window in chosen}
    return chosen, [window for window in found if window.place not in places][: 2 * count]
