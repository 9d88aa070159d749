"""Windows in which a latent is silent, parted into strata: where a label is likely to be wrong, and the bulk (METHODS 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import LatentEvidence, ScreenedWindows
from autointerp.sampling.firing import fires_in
from autointerp.sampling.scorable import kept_windows
from autointerp.sampling.token_windows import token_windows
from autointerp.sampling.window import ShownWindow, Stratum, of_pool
from sae_core.hashing import seed_for
from sae_core.records import Exemplar, Origin, Side, WindowPool

Near = Callable[[WindowPool, NDArray[np.intp]], NDArray[np.bool_]]
"""Says of rows [K] of a pool which of them [K] lie near the label by meaning."""

SILENT_STRATA = (Stratum.NEIGHBOUR, Stratum.TOKEN, Stratum.NEAR, Stratum.BULK)
"""In the order in which a window is put into the first that fits."""


@dataclass(frozen=True, slots=True, eq=False)
class SilentStrata:
    """A partition of a pool's windows that may be judged and in which the latent is silent."""

    side: Side
    """The side of the pool."""
    rows: Mapping[Stratum, NDArray[np.intp]]
    """Rows of the pool by stratum, ascending; a stratum without windows is there and empty."""
    num_firing: int
    """Windows of the pool that may be judged and in which the latent fires."""
    share_skipped: float
    """Share of the pool's windows that may not be judged."""

    @property
    def counts(self) -> dict[Stratum, int]:
        """Windows of each stratum."""
        return {stratum: len(rows) for stratum, rows in self.rows.items()}

    @property
    def num_silent(self) -> int:
        """Windows of all strata."""
        return sum(len(rows) for rows in self.rows.values())

    @property
    def weights(self) -> dict[Stratum, float]:
        """W_h / (1 - pi): each stratum's share of the silent windows, 1 in sum; empty where there are none."""
        whole = self.num_silent
        return {stratum: count / whole for stratum, count in self.counts.items()} if whole else {}


def silent_strata(evidence: LatentEvidence, side: Side, near: Near | None = None) -> SilentStrata:
    """The latent's silent windows of a side's pool by stratum; the neighbours' one needs ``evidence.lens``."""
    pool, latent = evidence.store.pool(side), evidence.latent
    kept = kept_windows(evidence, side)
    fires = fires_in(pool, latent)
    left = kept & ~fires
    rows: dict[Stratum, NDArray[np.intp]] = {}

    def take(stratum: Stratum, chosen: NDArray[np.bool_]) -> None:
        rows[stratum] = np.flatnonzero(left & chosen)
        left[rows[stratum]] = False

    chosen = np.zeros(len(left), dtype=np.bool_)
    for neighbour in () if evidence.lens is None else evidence.lens.neighbours[latent]:
        if neighbour >= 0:
            chosen[pool.activations(int(neighbour))[0]] = True
    take(Stratum.NEIGHBOUR, chosen)

    chosen = np.zeros(len(left), dtype=np.bool_)
    token = most_fired_token(evidence)
    if token is not None:
        chosen[token_windows(pool).holding(token)] = True
    take(Stratum.TOKEN, chosen)

    chosen = np.zeros(len(left), dtype=np.bool_)
    if near is not None:
        rest = np.flatnonzero(left)
        chosen[rest] = near(pool, rest)
    take(Stratum.NEAR, chosen)
    take(Stratum.BULK, np.ones(len(left), dtype=np.bool_))
    skipped = 1 - float(kept.mean()) if len(kept) else 0.0
    return SilentStrata(side, rows, int((kept & fires).sum()), skipped)


def most_fired_token(evidence: LatentEvidence) -> int | None:
    """The token on which the latent fires most often on the explain side (on ties the more strongly, then the first one).

    Where it fires nowhere in the pool, its stored exemplars are counted; None where there are none either.
    """
    store, latent = evidence.store, evidence.latent
    pool = store.pool(Side.EXPLAIN)
    window, column, values = pool.activations(latent)
    tokens = pool.tokens[window, column]
    if not len(tokens):
        stored = store.exemplars(latent, Side.EXPLAIN, Origin.SAMPLED) or store.exemplars(
            latent, Side.EXPLAIN, Origin.TOP
        )
        if not stored:
            return None
        tokens, values = _fired(stored)
    counts = np.bincount(tokens)
    best = np.flatnonzero(counts == counts.max())
    if len(best) > 1:
        best = best[np.argsort(-np.bincount(tokens, weights=np.abs(values))[best], kind="stable")]
    return int(best[0])


def _fired(exemplars: list[Exemplar]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Tokens on which the latent fires in some exemplars, and its activations there."""
    tokens = np.concatenate([exemplar.token_ids for exemplar in exemplars])
    values = np.concatenate([exemplar.activations for exemplar in exemplars])
    return tokens[values != 0], values[values != 0]


def allocate(strata: SilentStrata, total: int, shares: Mapping[Stratum, float]) -> dict[Stratum, int]:
    """Windows to draw from each stratum, ``total`` in sum as far as there are so many.

    A stratum gets its share of them, or all that it has; what is left goes to the bulk, and what the bulk cannot give to
    the others.
    """
    have = strata.counts
    drawn = dict.fromkeys(SILENT_STRATA, 0)
    left = total
    for stratum in SILENT_STRATA[:-1]:
        drawn[stratum] = min(round(total * shares.get(stratum, 0.0)), have.get(stratum, 0), left)
        left -= drawn[stratum]
    for stratum in (Stratum.BULK, *SILENT_STRATA[:-1]):
        more = min(left, have.get(stratum, 0) - drawn[stratum])
        drawn[stratum] += more
        left -= more
    return drawn


def uniform_counts(strata: SilentStrata, total: int, rng: np.random.Generator) -> dict[Stratum, int]:
    """Windows to draw from each stratum for a uniform sample of all silent windows, whatever their stratum."""
    have = [len(strata.rows[stratum]) for stratum in strata.rows]
    if not sum(have):
        return dict.fromkeys(strata.rows, 0)
    drawn = rng.multivariate_hypergeometric(have, min(total, sum(have)))
    return {stratum: int(count) for stratum, count in zip(strata.rows, drawn, strict=True)}


def sample_silent(
    strata: SilentStrata,
    evidence: LatentEvidence,
    counts: Mapping[Stratum, int],
    seed: int,
    screened: ScreenedWindows | None = None,
) -> list[ShownWindow]:
    """Uniform samples of the strata, one after the other, each in random order; one with too few windows is taken whole.

    Where a screen was shown a uniform sample of the bulk, the bulk's windows come from that, and those of its flagged windows follow
    that are to be verified (and did not come up by chance), as FLAGGED.
    """
    pool, latent = evidence.store.pool(strata.side), evidence.latent
    found: list[ShownWindow] = []
    for stratum, rows in strata.rows.items():
        count = min(counts.get(stratum, 0), len(rows))
        if stratum is Stratum.BULK and screened is not None:
            drawn = np.asarray(screened.shown[:count], dtype=np.intp)
        else:
            rng = np.random.default_rng(seed_for(seed, "silent", latent, int(strata.side), stratum.value))
            drawn = rng.choice(rows, count, replace=False)
        found += [of_pool(pool, int(row), latent, stratum) for row in drawn]
        if stratum is Stratum.BULK and screened is not None:
            further = [row for row in screened.flagged[: screened.verify] if row not in set(drawn.tolist())]
            found += [of_pool(pool, row, latent, Stratum.FLAGGED) for row in further]
    assert not any(window.fires for window in found)
    return found


def places(pool: WindowPool, rows: Sequence[int]) -> set[tuple[int, int]]:
    """(context, position) of some rows of a pool."""
    return {(int(pool.context[row]), int(pool.position[row])) for row in rows}
