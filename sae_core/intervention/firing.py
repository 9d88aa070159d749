"""Where latents really fire in their windows, by a clean pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_core.attachment import side_by_side
from sae_core.errors import CoderError
from sae_core.hookpoints import Hookpoint
from sae_core.intervention.directions import Coder
from sae_core.intervention.resume import CleanContext
from sae_core.intervention.windows import InterventionWindow
from sae_core.subject import SubjectModel


@dataclass(frozen=True)
class FiringSpan:
    """The part of one latent's window from its first firing token on."""

    row: int
    """The window's place in the caller's list."""
    latent: int
    """Index among the latents asked for."""
    context: int
    """Index among the clean contexts."""
    start: int
    """Position of the first firing token."""
    stop: int
    """One past the last position."""
    activations: NDArray[np.float32]
    """[stop - start] how many of its directions the latent writes; 0 where it is silent."""


def coder_hookpoints(subject: SubjectModel, coder: Coder) -> tuple[tuple[Hookpoint, ...], tuple[Hookpoint, ...]]:
    """Where a coder reads and where its directions act, checked against the subject.

    Raises:
        CoderError: the coder does not say where it belongs, or its directions do not fit there.
    """
    if getattr(coder, "value_biases_folded", False):
        raise CoderError(
            "The coder was trained without the values' bias of its subject; attach it first, which takes it off."
        )
    if not coder.hookpoints_in or not coder.hookpoints_out:
        raise CoderError("The coder does not say which hookpoint it belongs to; set the coder's hookpoint.")
    read = tuple(subject.hookpoint(name) for name in coder.hookpoints_in)
    write = tuple(subject.hookpoint(name) for name in coder.hookpoints_out)
    if (width := sum(subject.widths(write).values())) != coder.directions.shape[-1]:
        raise CoderError(
            f"The coder's directions have {coder.directions.shape[-1]} dimensions, the activations at "
            f"{', '.join(map(str, write))} have {width}; give the hookpoint that the coder was trained on."
        )
    return read, write


class FiringFinder:
    """Encodes clean activations and finds the spans of some latents' windows."""

    def __init__(
        self,
        subject: SubjectModel,
        coder: Coder,
        read: Sequence[Hookpoint],
        latents: NDArray[np.int32],
        *,
        threshold: float,
        max_positions: int | None,
    ) -> None:
        self._coder = coder
        self._read = read
        self._device = subject.device
        self._columns = torch.from_numpy(latents.astype(np.int64)).to(coder.directions.device)
        self._special = np.array(sorted(subject.special_ids), dtype=np.int64)
        self._threshold = threshold
        self._max_positions = max_positions

    def spans(
        self,
        number: int,
        tokens: NDArray[np.integer[Any]],
        clean: CleanContext,
        rows: Sequence[tuple[int, int, InterventionWindow]],
    ) -> list[FiringSpan]:
        """Spans of the windows of one context that fire there; ``rows`` are (row, index of the latent, window)."""
        used = np.zeros(len(clean.tokens), dtype=bool)
        for _, _, window in rows:
            used[window.position : window.position + window.length] = True
        at = np.flatnonzero(used)
        place = np.cumsum(used) - 1
        latents, column = np.unique([latent for _, latent, _ in rows], return_inverse=True)
        hidden = side_by_side(self._read, clean.captured)[torch.from_numpy(at).to(self._device)].to(
            self._columns.device
        )
        coded_NL = self._coder.encode(hidden)
        scale = self._coder.output_scale(hidden)
        wanted = self._columns[torch.from_numpy(latents).to(self._columns.device)]
        coded = coded_NL.index_select(1, wanted).float().cpu().numpy()
        coded[np.isin(tokens[at], self._special)] = 0
        coded[np.abs(coded) <= self._threshold] = 0
        if scale is not None:
            coded *= scale.float().cpu().numpy()[:, None]
        found = []
        for (row, latent, window), mine in zip(rows, column.tolist(), strict=True):
            begin = int(place[window.position])
            activations = coded[begin : begin + window.length, mine]
            firing = np.flatnonzero(activations)
            if len(firing) == 0:
                continue
            first = int(firing[0])
            activations = activations[first:][: self._max_positions]
            start = window.position + first
            found.append(FiringSpan(row, latent, number, start, start + len(activations), activations))
        return found
