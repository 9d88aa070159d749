"""A window as a reader of it sees it. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from sae_core.records import Exemplar, WindowPool


class Stratum(StrEnum):
    """Which part of a side a window was drawn from (METHODS 4); silent windows lie in the first one that fits."""

    FIRING = "firing"
    """The latent fires in it."""
    NEIGHBOUR = "neighbour"
    """Silent, and one of the latent's nearest decoder neighbours fires."""
    TOKEN = "token"
    """Silent, and it holds the token on which the latent fires most."""
    NEAR = "near"
    """Silent, and its meaning is near that of the label, by embedding."""
    BULK = "bulk"
    """All other silent windows."""
    FLAGGED = "flagged"
    """Of the bulk, windows that were looked at because a screen says that the label fits them: no sample of anything."""


@dataclass(frozen=True, slots=True, eq=False)
class ShownWindow:
    """One window with the latent's activations, and where it stands."""

    token_ids: NDArray[np.int32]
    """[T'] its tokens, BOS and padding left out."""
    activations: NDArray[np.float32]
    """[T'] the latent's activation at each of them."""
    context_ids: NDArray[np.int32]
    """[P'] the tokens before it in the same context, oldest first; may hold the BOS."""
    document: int
    """Ordinal of the document."""
    context: int
    """Ordinal of the context."""
    position: int
    """Position of the window's first token in its context."""
    stratum: Stratum
    """What it was drawn from."""

    @property
    def place(self) -> tuple[int, int]:
        """(context, position): what tells windows apart."""
        return self.context, self.position

    @property
    def id(self) -> str:
        """``context:position``, as it is stored."""
        return f"{self.context}:{self.position}"

    @property
    def fires(self) -> bool:
        """Whether the latent fires in it."""
        return bool((self.activations != 0).any())

    @property
    def max_activation(self) -> float:
        """Largest magnitude, 0 where it is silent."""
        return float(np.abs(self.activations).max(initial=0.0))

    @property
    def firing_positions(self) -> NDArray[np.intp]:
        """Indices of the firing tokens, ascending."""
        return np.flatnonzero(self.activations)


def of_exemplar(exemplar: Exemplar, special: Collection[int] = ()) -> ShownWindow:
    """A stored exemplar as it is shown; a BOS at its start (one of the ``special`` ids) moves to what is before it."""
    opens = exemplar.position == 0 and len(exemplar.token_ids) > 0 and int(exemplar.token_ids[0]) in special
    first = 1 if opens else 0
    before = np.concatenate([exemplar.context_ids, exemplar.token_ids[:first]]) if first else exemplar.context_ids
    return ShownWindow(
        token_ids=exemplar.token_ids[first:],
        activations=exemplar.activations[first:],
        context_ids=before,
        document=exemplar.document,
        context=exemplar.context,
        position=exemplar.position,
        stratum=Stratum.FIRING,
    )


def of_pool(pool: WindowPool, row: int, latent: int, stratum: Stratum) -> ShownWindow:
    """A window of a pool with the activations of one latent.

    ``position`` is that of the window, as exemplars have it; a BOS at its start is left out of ``token_ids``.
    """
    first = int(pool.first_token[row])
    tokens = pool.tokens[row]
    body = np.flatnonzero((np.arange(len(tokens)) >= first) & (tokens >= 0))
    before = tokens[:first]
    values = np.zeros(len(tokens), dtype=np.float32)
    windows, columns, activations = pool.activations(latent)
    entries = slice(*np.searchsorted(windows, [row, row + 1]))
    values[columns[entries]] = activations[entries]
    return ShownWindow(
        token_ids=tokens[body],
        activations=values[body],
        context_ids=before[before >= 0],
        document=int(pool.document[row]),
        context=int(pool.context[row]),
        position=int(pool.position[row]),
        stratum=stratum,
    )


def rows_of(pool: WindowPool, ids: Sequence[str]) -> set[int]:
    """Rows of a pool whose windows have these ids (``context:position``); ids of other windows are passed over."""
    wanted = np.array([[int(number) for number in one.split(":")] for one in ids], dtype=np.int64).reshape(-1, 2)
    places = (pool.context.astype(np.int64) << 32) | pool.position.astype(np.int64)
    found = np.flatnonzero(np.isin(places, (wanted[:, 0] << 32) | wanted[:, 1]))
    return set(found.tolist())
