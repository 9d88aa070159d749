"""Vectors of texts, kept by the texts' hashes, so that no text is embedded twice. K vectors of width D.

Two files that only grow: ``vectors.bin``, [K, D] bytes, and ``entries.bin``, the hash and the scale of each. A vector counts once its
entry is whole; what a killed writer left behind that is cut off when the next one begins. Vectors of texts that are no labels any more stay.

A vector of length 1 is rounded to whole multiples of 1/127 of its largest number. For embedders of some hundred numbers this moves a
cosine by about 0.0005, which is less than the second digit that is shown, and three times as many texts fit into the memory as in
half precision, whose conversion alone would take most of a second for a million.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_core.errors import NonFiniteError, StoreError

VERSION = 1
_VECTORS, _ENTRIES = "vectors.bin", "entries.bin"
_ENTRY = np.dtype([("hash", "<u8"), ("scale", "<f4")])
_LARGEST = 127


def text_hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    """[texts] 64 bits of each; two of a million texts share one with a chance of 3e-8."""
    data = b"".join(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts)
    return np.frombuffer(data, "<u8").astype(np.uint64)


def kept_name(embedder: str, width: int) -> str:
    """Name of the folder with the vectors of one embedder."""
    return blake2b(f"{VERSION}:{embedder}:{width}".encode(), digest_size=8).hexdigest()


class RoundedVectors(NamedTuple):
    """Vectors of length 1 in eight bits a number."""

    numbers: NDArray[np.int8]
    """[K, D]"""
    scales: NDArray[np.float32]
    """[K] what makes the length of each 1 again."""


def rounded(vectors: NDArray[np.float32]) -> RoundedVectors:
    """Of [K, D] vectors of any length but 0, which stays 0."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    numbers = np.rint(vectors * (_LARGEST / np.where(largest > 0, largest, 1))).astype(np.int8)
    lengths = np.linalg.norm(numbers.astype(np.float32), axis=1)
    return RoundedVectors(numbers, np.divide(1, lengths, where=lengths > 0, out=np.zeros(len(numbers), np.float32)))


def read_vectors(folder: Path, width: int, count: int) -> RoundedVectors:
    """The first ``count`` vectors, mapped. Errors: StoreError where there are fewer."""
    if not count:
        return RoundedVectors(np.empty((0, width), np.int8), np.empty(0, np.float32))
    try:
        numbers = np.memmap(folder / _VECTORS, np.int8, "r", shape=(count, width))
        scales = np.fromfile(folder / _ENTRIES, _ENTRY, count)["scale"].astype(np.float32)
    except (OSError, ValueError) as error:
        raise StoreError("the vectors of the labels are gone: have them made again.") from error
    if len(scales) < count:
        raise StoreError("some vectors of the labels are gone: have them made again.")
    return RoundedVectors(numbers, scales)


class VectorWriter:
    """Adds vectors; made by :func:`writing_vectors`."""

    def __init__(self, folder: Path, width: int) -> None:
        self._folder, self._width = folder, width
        for name in (_VECTORS, _ENTRIES):
            (folder / name).touch()
        sizes = [(folder / name).stat().st_size for name in (_VECTORS, _ENTRIES)]
        count = min(sizes[0] // width, sizes[1] // _ENTRY.itemsize)
        os.truncate(folder / _VECTORS, count * width)
        os.truncate(folder / _ENTRIES, count * _ENTRY.itemsize)

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """[K] of the texts whose vectors are there, in their order."""
        return np.fromfile(self._folder / _ENTRIES, _ENTRY)["hash"].astype(np.uint64)

    def add(self, hashes: NDArray[np.uint64], vectors: NDArray[np.float32]) -> None:
        """Keep [N, D] vectors, for good when this returns. Errors: NonFiniteError; OSError where there is no room."""
        if not np.isfinite(vectors).all():
            raise NonFiniteError("the sentence embedding model gives NaN or infinite values: install it again.")
        numbers, scales = rounded(vectors)
        entries = np.empty(len(hashes), _ENTRY)
        entries["hash"], entries["scale"] = hashes, scales
        # an entry must not outlive a power cut that its vector does not
        for name, data in ((_VECTORS, numbers.tobytes()), (_ENTRIES, entries.tobytes())):
            with (self._folder / name).open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())


@contextmanager
def writing_vectors(folder: Path, width: int) -> Iterator[VectorWriter]:
    """The only writer of a folder. Errors: StoreError while another process is; OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError("another process is reading these labels: wait until it has done so.") from error
        yield VectorWriter(folder, width)
    finally:
        os.close(handle)
