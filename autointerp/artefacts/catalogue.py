"""Which files the finished chunks of a run left, as rows that are written in the transaction that marks the chunk done.

So a file is there for others exactly if its chunk is done: one that was uploaded by a process that died, or that was fenced off, is in
no row, and nobody reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from sqlalchemy import Connection, func, select

from autointerp.store import LabelStore
from autointerp.store.models import Artefact
from sae_core.errors import StoreError

_KIND = "/files/"
_LONGEST_KIND = 120
_LAST = frozenset({"corpus.json", "index.json", "_manifest.json"})
"""Files that say that a folder is whole."""


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A file below the run's folder."""

    path: str
    """With forward slashes, from the run's folder."""
    size: int
    sha256: str

    def key(self, run_id: str) -> str:
        """Where it lies in the remote place: content has its own name, so that nothing there ever changes."""
        return f"{run_id}/{self.path}~{self.sha256[:16]}"


def in_order(files: Iterable[SharedFile]) -> list[SharedFile]:
    """By path, those that say that their folder is whole last."""
    return sorted(files, key=lambda file: (PurePosixPath(file.path).name in _LAST, file.path))


def files_row(run_id: str, stage: str, source: str, ordinal: int, fence: int, files: Iterable[SharedFile]) -> Artefact:
    """What a chunk left; the row of a later holder of the chunk, whose fence is higher, counts instead of this."""
    value = {file.path: [file.size, file.sha256] for file in files}
    return Artefact(run_id=run_id, kind=row_kind(stage, source, ordinal), version=fence, value=value)


def row_kind(stage: str, source: str, ordinal: int) -> str:
    """The kind of a chunk's row; it goes with its stage's others where a retry forgets the stage."""
    kind = f"{stage}{_KIND}{source}/{ordinal}"
    if len(kind) <= _LONGEST_KIND:
        return kind
    return f"{stage}{_KIND}{hashlib.sha256(source.encode()).hexdigest()[:32]}/{ordinal}"


@dataclass(frozen=True, slots=True)
class _Row:
    kind: str
    fence: int
    files: tuple[SharedFile, ...]


class Catalogue:
    """The files of a run as far as its chunks are done, brought up to date by reading what is new."""

    def __init__(self, store: LabelStore, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        self._rows: dict[int, _Row] = {}
        self._last: dict[str, _Row] = {}
        self._files: dict[str, tuple[SharedFile, str]] = {}
        self._entered: list[str] = []
        self._edition = 0

    def read(self) -> Mapping[str, tuple[SharedFile, str]]:
        """All files by path, and the kind of the row that names each; where several do, the one written last. Nobody's to change."""
        count = (
            select(func.count())
            .select_from(Artefact)
            .where(Artefact.run_id == self._run_id, Artefact.kind.contains(_KIND))
        )
        anew = False
        with self._store.reading() as connection:
            # a row with a lower number may be committed after one with a higher, and a retry removes rows: both change the count
            newer = self._query(connection, max(self._rows, default=-1))
            if len(self._rows) + len(newer) != connection.execute(count).scalar_one():
                anew, newer = True, self._query(connection, -1)
        if anew:
            self._rows = {}
        self._rows.update(newer)
        if anew or any(row.kind in self._last for row in newer.values()):
            self._begin_again()
        else:
            self._enter(sorted(newer))
        return self._files

    def entered(self, mark: tuple[int, int] | None) -> tuple[list[str], tuple[int, int]]:
        """Paths whose files are new since a mark (None: all) as of the last :meth:`read`, some of them twice, and the mark for the next time."""
        known = mark[1] if mark is not None and mark[0] == self._edition else 0
        return self._entered[known:], (self._edition, len(self._entered))

    def _begin_again(self) -> None:
        """All files from all rows: one is gone, or came late, or is in another's place."""
        self._last, self._files, self._entered = {}, {}, []
        self._edition += 1
        newest: dict[str, int] = {}
        for number in sorted(self._rows):
            row = self._rows[number]
            if row.kind not in newest or self._rows[newest[row.kind]].fence < row.fence:
                newest[row.kind] = number
        self._enter(sorted(newest.values()))

    def _enter(self, numbers: Iterable[int]) -> None:
        for row in (self._rows[number] for number in numbers):
            self._last[row.kind] = row
            for file in row.files:
                self._files[file.path] = (file, row.kind)
                self._entered.append(file.path)

    def _query(self, connection: Connection, after: int) -> dict[int, _Row]:
        rows = connection.execute(
            select(Artefact.id, Artefact.kind, Artefact.version, Artefact.value).where(
                Artefact.run_id == self._run_id, Artefact.kind.contains(_KIND), Artefact.id > after
            )
        )
        return {
            number: _Row(kind, fence, tuple(_checked(path, *given) for path, given in value.items()))
            for number, kind, fence, value in rows
        }


def _checked(path: str, size: int, sha256: str) -> SharedFile:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise StoreError(
            f"the store names the file {path!r}, which is not below a run's folder: it was not written by this program."
        )
    return SharedFile(path, int(size), sha256)
