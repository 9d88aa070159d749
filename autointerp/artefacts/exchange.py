"""What a chunk reads comes from the other workers before it, and what it made goes to them after it."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from autointerp.artefacts.catalogue import Catalogue, SharedFile, files_row, in_order, row_kind
from autointerp.artefacts.remote import Remote, digest
from autointerp.pipeline.stage import ChunkSpec, Stage
from autointerp.store import LabelStore
from autointerp.store.models import Artefact

_MADE = {
    "tokenize": ("corpus/*",),
    "directions": ("sources/{source}/directions.*",),
    "extract": ("sources/*/partials/{ordinal:06d}.*",),
    "merge": ("sources/{source}/exemplars/*",),
    "export": ("dictionary/*",),
    "summarise": ("summary.json", "overview.png"),
}
"""Files of the stages that make others than evidence, from the run's folder."""
_EVIDENCE = ("sources/{source}/evidence/*-{ordinal:06d}.*",)
_AGAIN_S = 10.0
"""How often a folder that changes is looked through for files that are not as they should be."""
_TICK_NS = 2 * 10**9
_RESULTS = ("dictionary/*", "summary.json", "overview.png")


@dataclass(slots=True)
class _Folder:
    """What a process knows of one folder of the run."""

    example: str
    """Path of one of its files."""
    unseen: set[str] = field(default_factory=set)
    """Files of the catalogue that have not been looked for here."""
    looked: tuple[float, int | None] | None = None
    """When all its files were looked for last, and the folder's time of change then, None where that may come again."""


class Exchange:
    """The files of one run between this machine's folder for it and the remote place. Of one process."""

    def __init__(self, remote: Remote, store: LabelStore, run_id: str, root: Path) -> None:
        """``root``: the run's folder on this machine; processes of the machine may share it."""
        self._remote, self._run_id, self._root = remote, run_id, root
        self._catalogue = Catalogue(store, run_id)
        self._known: dict[str, tuple[int, int, str]] = {}
        """Size, time of change and sha256 of files that this process has seen here, by path."""
        self._mark: tuple[int, int] | None = None
        """How far the catalogue has been gone through."""
        self._folders: dict[str, _Folder] = {}

    def fetch(self, stage: Stage, spec: ChunkSpec | None) -> int:
        """Bring here what a chunk may read and is not here, or what planning the stage may (None); returns how many files came.

        GPU stages get the corpus, ``merge`` the partials of its source, and all get the rest: a chunk may read the evidence of others.
        Errors: StoreError, StoreUnavailableError, DiskFullError.
        """
        known = self._catalogue.read()
        entered, mark = self._catalogue.entered(self._mark)
        if self._mark is None or mark[0] != self._mark[0]:
            self._folders = {}
        self._mark = mark
        for path in entered:
            self._folders.setdefault(path.rpartition("/")[0], _Folder(path)).unseen.add(path)
        brought = 0
        for name, folder in self._folders.items():
            if not _is_read_by(folder.example, stage, spec):  # of a folder a chunk reads all or nothing
                continue
            looked = self._look_at(name, folder)
            if looked is not None:
                folder.unseen |= {path for path in known if path.rpartition("/")[0] == name}
            brought += self._bring(known[path][0] for path in folder.unseen)
            folder.unseen.clear()
            if looked is not None:
                folder.looked = looked
        return brought

    def fetch_results(self) -> int:
        """Bring here what a person reads: dictionary, summary, exemplars and evidence. Errors: as of :meth:`fetch`."""
        found = [file for file, _ in self._catalogue.read().values()]
        return self._bring(
            file for file in found if "/partials/" not in file.path and not file.path.startswith("corpus/")
        )

    def publish(self, stage: Stage, spec: ChunkSpec, fence: int) -> list[Artefact]:
        """Upload what a chunk made; the row that tells others of it, to be written with the chunk's end.

        Errors: StoreUnavailableError, DiskFullError.
        """
        known = self._catalogue.read()
        kind = row_kind(stage.name, spec.source, spec.ordinal)
        made = []
        for path in self._made(stage, spec):
            file = self._local(path)
            if file is None:
                continue
            there, whose = known.get(path, (None, kind))
            if there == file and whose != kind:
                continue  # another stage of the same latents left it
            self._remote.put(self._root / path, file.key(self._run_id), file.size)
            made.append(file)
        return [files_row(self._run_id, stage.name, spec.source, spec.ordinal, fence, made)] if made else []

    def _look_at(self, name: str, folder: _Folder) -> tuple[float, int | None] | None:
        """The time, and when the folder changed, where all its files are to be looked for; None where those that are new are enough.

        Files come into a folder and leave it by a change of the folder. One that changes all the time is gone through only every few
        seconds, because all chunks do this and there are as many files as chunks.
        """
        now = time.monotonic()
        try:
            changed = (self._root / name).stat().st_mtime_ns
        except FileNotFoundError:
            return now, None
        if folder.looked is not None and (changed == folder.looked[1] or now - folder.looked[0] < _AGAIN_S):
            return None
        # one that has just changed can change again within the same tick of the file system's clock
        return now, changed if time.time_ns() - changed > _TICK_NS else None

    def _bring(self, files: Iterable[SharedFile]) -> int:
        missing = [file for file in in_order(files) if self._local(file.path) != file]
        for file in missing:
            self._remote.get(file.key(self._run_id), self._root / file.path, file.size, file.sha256)
            self._remember(file)
        return len(missing)

    def _remember(self, file: SharedFile) -> None:
        found = (self._root / file.path).stat()
        self._known[file.path] = (found.st_size, found.st_mtime_ns, file.sha256)

    def _local(self, path: str) -> SharedFile | None:
        """What lies here under a path, None for nothing."""
        try:
            found = (self._root / path).stat()
        except FileNotFoundError:
            return None
        before = self._known.get(path)
        if before is None or before[:2] != (found.st_size, found.st_mtime_ns):
            before = (found.st_size, found.st_mtime_ns, digest(self._root / path))
            self._known[path] = before
        return SharedFile(path, before[0], before[2])

    def _made(self, stage: Stage, spec: ChunkSpec) -> Iterator[str]:
        for pattern in _MADE.get(stage.name, _EVIDENCE):
            filled = pattern.format(source=_literal(spec.source) or "*", ordinal=spec.ordinal)
            for path in sorted(self._root.glob(filled)):
                if path.is_file() and not path.name.startswith("."):
                    yield path.relative_to(self._root).as_posix()


def _is_read_by(path: str, stage: Stage, spec: ChunkSpec | None) -> bool:
    if "/partials/" in path:
        return spec is not None and stage.name == "merge" and path.startswith(f"sources/{spec.source}/")
    if path.startswith("corpus/"):
        return stage.queue == "gpu"
    if any(fnmatch.fnmatch(path, pattern) for pattern in _RESULTS):
        return stage.queue == "export"
    return True


def _literal(name: str) -> str:
    """A name as a part of a pattern that it alone fits."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
