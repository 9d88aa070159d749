"""Makes the index of an exported dictionary's labels by their meaning; run where nothing waits for it, since it may take hours.

A dictionary is read by row group. Of a row nothing stays in memory but its number and its label's hash.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.browsing.kept_vectors import VectorWriter, kept_name, text_hashes, writing_vectors
from autointerp.browsing.meanings import MeaningOutline, write_index
from autointerp.sentence_embedding import Embedder
from sae_core.errors import StoreError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMN = "label"
_BATCH = 256
"""Labels that are embedded before they are kept: seconds of work."""


class MakingProgress(NamedTuple):
    """How far it is."""

    done: int
    """Distinct labels that were embedded."""
    total: int
    """Distinct labels that had not been before."""


def dictionary_digest(dictionary: Path) -> str:
    """sha256 of the manifest, by which an index knows its dictionary. Errors: MissingFileError, StoreError."""
    from autointerp.export.manifest import MANIFEST_NAME, read_manifest

    read_manifest(dictionary)
    return hashlib.sha256((dictionary / MANIFEST_NAME).read_bytes()).hexdigest()


def make_meanings(dictionary: Path, folder: Path, embedder: Embedder) -> Iterator[MakingProgress]:
    """Make the index in ``folder``, a batch of labels a step; where it is left off, the next one goes on.

    Errors: StoreError, MissingFileError for what is no whole dictionary, or not the same one all the time; OSError.
    """
    import pyarrow as pa

    try:
        yield from _make(dictionary, folder, embedder)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # arrow's own have no number
            raise
        raise StoreError("the files of the dictionary cannot be read: export it again.") from error


def _make(dictionary: Path, folder: Path, embedder: Embedder) -> Iterator[MakingProgress]:
    digest = dictionary_digest(dictionary)
    rows, hashes = _hashed(dictionary)
    width = embedder.embed(["a"]).shape[1]
    kept = kept_name(embedder.name, width)
    with writing_vectors(folder / kept, width) as writer:
        distinct, firsts = np.unique(hashes, return_index=True)
        missing = np.sort(rows[firsts[~np.isin(distinct, writer.hashes)]])
        done = 0
        yield MakingProgress(0, len(missing))
        for texts in _texts(dictionary, missing):
            # by the texts themselves, whatever has become of the dictionary since they were counted
            writer.add(text_hashes(texts), embedder.embed(texts))
            done += len(texts)
            yield MakingProgress(done, len(missing))
        if dictionary_digest(dictionary) != digest:
            raise StoreError("the dictionary was made anew while its labels were read: have them read again.")
        places = _places(writer, hashes)
        outline = MeaningOutline(
            made_of=digest,
            embedder=embedder.name,
            kept=kept,
            width=width,
            num_vectors=len(writer.hashes),
            num_rows=len(rows),
        )
        write_index(folder, outline, rows, places)
    for other in folder.iterdir():
        if other.is_dir() and other.name != kept:
            shutil.rmtree(other, ignore_errors=True)


def _columns(dictionary: Path) -> Iterator[tuple[int, pa.ChunkedArray]]:
    """Row group by row group, the number of the first row and the labels."""
    import pyarrow.parquet as pq

    from autointerp.export.manifest import read_manifest

    row = 0
    for part in read_manifest(dictionary).files:
        with pq.ParquetFile(dictionary / part.name, page_checksum_verification=True) as file:
            if COLUMN not in file.schema_arrow.names:
                return
            for group in range(file.num_row_groups):
                labels = file.read_row_group(group, columns=[COLUMN]).column(COLUMN)
                yield row, labels
                row += len(labels)


def _hashed(dictionary: Path) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """[M], [M] numbers of the rows that have a label, and their labels' hashes."""
    rows: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    hashes: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    for first, labels in _columns(dictionary):
        found = [(number, text) for number, text in enumerate(labels.to_pylist()) if text]
        rows.append(np.array([number for number, _ in found], np.int64) + first)
        hashes.append(text_hashes([text for _, text in found]))
    return np.concatenate(rows), np.concatenate(hashes)


def _texts(dictionary: Path, rows: NDArray[np.int64]) -> Iterator[list[str]]:
    """The labels of some rows (ascending), a batch at a time."""
    for first, labels in _columns(dictionary):
        start, end = np.searchsorted(rows, [first, first + len(labels)])
        for at in range(int(start), int(end), _BATCH):
            batch = rows[at : min(at + _BATCH, int(end))] - first
            if texts := [text for text in labels.take(batch).to_pylist() if text]:
                yield texts


def _places(writer: VectorWriter, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
    """[M] which vector is that of each row's label. Errors: StoreError where one is missing."""
    kept = writer.hashes
    order = np.argsort(kept, kind="stable")
    at = np.searchsorted(kept[order], hashes)
    if len(hashes) and (at.max() >= len(kept) or not np.array_equal(kept[order[at]], hashes)):
        raise StoreError("the dictionary changed while its labels were read: have them read again.")
    return order[at].astype(np.int32)
