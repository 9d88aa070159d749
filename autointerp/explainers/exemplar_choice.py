"""Which of a latent's firing windows an explainer is shown: of the explain side alone, deterministic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from autointerp.evidence import LatentEvidence
from autointerp.sampling.firing import fires_in
from autointerp.sampling.importance import importance_weighted
from autointerp.sampling.window import ShownWindow, Stratum, of_exemplar, of_pool
from sae_core.hashing import seed_for
from sae_core.records import Origin, Side

Selection = Literal["quantiles", "top", "sampled", "mixed", "spread", "importance"]
"""See :func:`choose_exemplars`."""


def choose_exemplars(evidence: LatentEvidence, count: int, selection: Selection) -> list[ShownWindow]:
    """At most ``count`` windows of the explain side in which the latent fires, strongest first; each text once.

    ``top``: the strongest ones. ``sampled``: the first ones of the uniform sample. ``mixed``: half of each. ``quantiles``: a
    quarter strongest ones, the rest evenly over the ranks of the uniform sample, so that weak firing is seen as well
    (METHODS 1). ``spread``: all of them over the ranks. ``importance``: two thirds strongest ones, the rest of the weaker ones in
    proportion to their squared activations. What one part lacks, another gives.
    """
    store, special = evidence.store, evidence.store.pieces.special
    stored = {
        origin: _distinct(of_exemplar(e, special) for e in store.exemplars(evidence.latent, Side.EXPLAIN, origin))
        for origin in (Origin.TOP, Origin.SAMPLED)
    }
    top, sampled = stored[Origin.TOP], stored[Origin.SAMPLED]
    if len(_distinct([*top, *sampled])) < count:
        sampled = _distinct([*sampled, *_of_pool(evidence)])
    strongest = _strongest_first(_distinct([*top, *sampled]))
    shares = {"top": count, "sampled": 0, "mixed": count // 2, "quantiles": count // 4, "spread": 0}
    num_top = shares.get(selection, count - count // 3)
    chosen = strongest[:num_top]
    seen = {_text(window) for window in chosen}
    rest = [window for window in sampled if _text(window) not in seen]
    if selection == "importance":
        rng = np.random.default_rng(seed_for(0, "importance", evidence.latent))
        rest = importance_weighted(rest, count - len(chosen), rng)
    if selection in ("quantiles", "spread"):
        rest = _spread(_strongest_first(rest), count - len(chosen))
    chosen = _distinct([*chosen, *rest[: count - len(chosen)], *strongest])[:count]
    return _strongest_first(chosen)


def largest_activation(evidence: LatentEvidence, windows: Iterable[ShownWindow]) -> float:
    """The latent's largest magnitude on the explain side; at least that of ``windows``."""
    known = abs(float(evidence.store.statistics.max_activation[Side.EXPLAIN, evidence.latent]))
    return max([known, *(window.max_activation for window in windows)])


def _of_pool(evidence: LatentEvidence) -> Iterable[ShownWindow]:
    """The pool's firing windows in random order: a uniform sample as well, for stores that keep few exemplars."""
    pool, latent = evidence.store.pool(Side.EXPLAIN), evidence.latent
    rows = np.flatnonzero(fires_in(pool, latent))
    rng = np.random.default_rng(seed_for(0, "exemplars", latent))
    return (of_pool(pool, int(row), latent, Stratum.FIRING) for row in rng.permutation(rows)[:_MOST_OF_POOL])


_MOST_OF_POOL = 200
"""Windows that are looked at where a store keeps too few exemplars."""


def _text(window: ShownWindow) -> bytes:
    """What tells windows apart for a reader: their tokens, wherever they stand."""
    return window.token_ids.astype(np.int64).tobytes()


def _distinct(windows: Iterable[ShownWindow]) -> list[ShownWindow]:
    """The first window of each text: a header that stands in a thousand documents is shown once."""
    found: dict[bytes, ShownWindow] = {}
    for window in windows:
        found.setdefault(_text(window), window)
    return list(found.values())


def _strongest_first(windows: Iterable[ShownWindow]) -> list[ShownWindow]:
    return sorted(windows, key=lambda window: -window.max_activation)


def _spread(windows: list[ShownWindow], count: int) -> list[ShownWindow]:
    """``count`` of them, evenly over their order, the first and the last among them."""
    if len(windows) <= count:
        return windows
    return [windows[int(i)] for i in np.linspace(0, len(windows) - 1, count).round()]
