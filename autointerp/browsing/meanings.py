"""Which labels mean the like of some words: a vector a distinct label, and rows by the cosine with the words' vector.

M rows with a label, K vectors, width D. All cosines are computed, block by block: a million take less time than a reader notices, and
nothing has to be tuned, nor is anything missed. The index is that of one dictionary, as its columns are; the vectors behind it are kept
by the labels' texts (:mod:`autointerp.browsing.kept_vectors`), so that the next dictionary takes only the time of its new labels.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from autointerp.browsing.kept_vectors import read_vectors
from sae_core.errors import StoreError

MEANINGS_NAME = "rows.safetensors"
FORMAT, VERSION = "autointerp meanings", 1
_BLOCK = 1_024
"""Vectors that are multiplied at a time: their float32 numbers stay in the processor's cache."""


class MeaningOutline(BaseModel):
    """What an index says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = FORMAT
    version: int = VERSION
    made_of: str
    """sha256 of the dictionary's manifest."""
    embedder: str
    """Name of the model."""
    kept: str
    """Folder of its vectors, beside the index."""
    width: int
    """D"""
    num_vectors: int
    """K, of this dictionary's labels and of others'."""
    num_rows: int
    """M"""


class NearestRows(NamedTuple):
    """An answer, the nearest first; rows of equal labels in their order."""

    rows: NDArray[np.int64]
    """[at most limit]"""
    cosines: NDArray[np.float32]
    """[at most limit]"""


def read_outline(folder: Path) -> MeaningOutline | None:
    """Of the index in a folder; None where there is none that this version can read."""
    try:
        with safe_open(folder / MEANINGS_NAME, "np") as file:
            found = MeaningOutline.model_validate(file.metadata() or {})
    except (OSError, SafetensorError, ValidationError):
        return None
    return found if (found.format, found.version) == (FORMAT, VERSION) else None


def write_index(folder: Path, outline: MeaningOutline, rows: NDArray[np.int64], places: NDArray[np.int32]) -> None:
    """Put an index in its place, whole. ``rows``: [M] ascending; ``places``: [M] which vector is each row's. Errors: OSError."""
    from autointerp.export.folder_swap import sync_folder

    beside = folder / f".{MEANINGS_NAME}.tmp"
    metadata = {name: str(value) for name, value in outline.model_dump().items()}
    save_file({"rows": rows, "places": places}, beside, metadata)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, folder / MEANINGS_NAME)
    sync_folder(folder)


class LabelMeanings:
    """The index in a folder. Threads may share one; when another dictionary's takes its place, it goes on with its own."""

    def __init__(self, folder: Path) -> None:
        """Errors: StoreError where the folder holds none that is whole."""
        outline = read_outline(folder)
        try:
            if outline is None:
                raise StoreError("these labels have not been read yet.")
            with safe_open(folder / MEANINGS_NAME, "np") as file:
                # the file may have been replaced since it was asked what it is
                outline = MeaningOutline.model_validate(file.metadata() or {})
                self._rows: NDArray[np.int64] = file.get_tensor("rows")
                self._places: NDArray[np.int32] = file.get_tensor("places")
        except (OSError, SafetensorError, ValidationError) as error:
            raise StoreError("the index of the labels cannot be read: have it made again.") from error
        self.outline = outline
        self._numbers, self._scales = read_vectors(folder / outline.kept, outline.width, outline.num_vectors)

    def nearest(self, vector: NDArray[np.float32], limit: int, among: NDArray[np.int64] | None = None) -> NearestRows:
        """The rows whose labels are nearest to a [D] vector of length 1, of those ``among`` (ascending) or of all.

        Errors: StoreError for the vector of another embedder.
        """
        if vector.shape != (self.outline.width,):
            raise StoreError("the labels were read by another embedding model: have them read again.")
        rows, cosines = self._rows, self._cosines(vector)[self._places]
        if among is not None:
            end = int(max(among[-1:].tolist() + rows[-1:].tolist(), default=-1)) + 1
            fits = np.zeros(end, np.bool_)
            fits[among] = True
            kept = fits[rows]
            rows, cosines = rows[kept], cosines[kept]
        order = _largest(cosines, limit)
        return NearestRows(rows[order], cosines[order])

    def _cosines(self, vector_D: NDArray[np.float32]) -> NDArray[np.float32]:
        """[K]"""
        found = np.empty(len(self._numbers), np.float32)
        block = np.empty((min(_BLOCK, len(found)), len(vector_D)), np.float32)
        for start in range(0, len(found), _BLOCK):
            end = min(start + _BLOCK, len(found))
            np.copyto(block[: end - start], self._numbers[start:end])
            np.dot(block[: end - start], vector_D, out=found[start:end])
        found *= self._scales
        return found


def _largest(values: NDArray[np.float32], limit: int) -> NDArray[np.int64]:
    """Places of the largest values, the largest first, equal ones in their order."""
    if len(values) > limit:
        border = np.partition(values, len(values) - limit)[len(values) - limit]
        above, equal = np.flatnonzero(values > border), np.flatnonzero(values == border)
        places = np.sort(np.concatenate([above, equal[: limit - len(above)]]))
    else:
        places = np.arange(len(values))
    return places[np.argsort(-values[places], kind="stable")]
