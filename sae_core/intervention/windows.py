"""Which windows of a latent are intervened on. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sae_core.hashing import hash64, seed_for
from sae_core.records import Exemplar, Origin, Side


@dataclass(frozen=True, slots=True, order=True)
class InterventionWindow:
    """A firing window of a latent, by its place in the corpus."""

    context: int
    """Ordinal of the context."""
    position: int
    """Position of the window's first token in its context, the BOS counted."""
    length: int
    """Tokens of the window."""
    document: int
    """Ordinal of the document."""


class ExemplarSource(Protocol):
    """What :class:`sae_core.exemplar_store.ExemplarStore` offers."""

    def exemplars(self, latent: int, side: Side, origin: Origin) -> list[Exemplar]: ...


def choose_windows(
    store: ExemplarSource,
    latents: Iterable[int],
    side: Side,
    num_windows: int,
    *,
    shared_order_seed: int | None = None,
) -> dict[int, list[InterventionWindow]]:
    """At most ``num_windows`` windows of each latent from the store's *uniform* sample of one side (METHODS 5).

    One window a document as long as there are documents, then further windows of the same ones. The order is the
    store's, which is uniform and independent between latents. With ``shared_order_seed`` it is instead a random order
    of the contexts that all latents share: each latent's windows are as much a uniform draw as before, but latents
    meet in the same contexts, whose clean pass they share; what is lost is independence *between* latents, so the
    standard error of a dictionary's mean is larger than the same number of independent windows would give.

    Latents without a firing window on the side get an empty list.
    """
    chosen: dict[int, list[InterventionWindow]] = {}
    for latent in latents:
        sampled = [
            InterventionWindow(e.context, e.position, len(e.token_ids), e.document)
            for e in store.exemplars(latent, side, Origin.SAMPLED)
        ]
        if shared_order_seed is not None:
            seed = seed_for(shared_order_seed, "intervention contexts", int(side))
            keys = hash64(np.array([w.context for w in sampled], dtype=np.int64), seed)
            sampled = [sampled[i] for i in np.argsort(keys, kind="stable")]
        first: dict[int, InterventionWindow] = {}
        for window in sampled:
            first.setdefault(window.document, window)
        picked = list(first.values())
        taken = set(picked)
        picked += [window for window in dict.fromkeys(sampled) if window not in taken]
        chosen[latent] = picked[:num_windows]
    return chosen
