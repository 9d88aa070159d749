"""The runs that a server shows, and what is kept open of them: the store, the exemplars, the dictionary's columns."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import select

from autointerp.browsing import DictionaryColumns, open_columns
from autointerp.operations.logging import redact_config
from autointerp.pipeline.causal_columns import CausalColumns
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.dictionary_pages import SourceReading
from autointerp.pipeline.finding import notes_below, open_of_note
from autointerp.pipeline.folder import DATABASE, RunFolder
from autointerp.pipeline.starting import open_run
from autointerp.review.recording import Review
from autointerp.store import LabelStore, open_store
from autointerp.store.models import Run
from autointerp.store.opening import sqlite_url
from autointerp.store.store import RunHead
from sae_core.errors import StoreError, UnknownNameError

if TYPE_CHECKING:
    from autointerp.export.manifest import Manifest
    from autointerp.server.settings import ServerSettings

STATE_FOLDER = ".server"
"""Below the home: what the server makes for itself, and may make anew."""
_MOST_OPEN = 32
"""Runs kept open at a time; those that were asked for last."""


@dataclass
class ServedRun:
    """A run as the server reads it. Threads share one."""

    context: RunContext
    state_folder: Path
    """Where its columns and its exports lie."""
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _columns: DictionaryColumns | None = field(default=None, repr=False)
    _of: tuple[Path, int] | None = field(default=None, repr=False)
    _remembered: dict[str, tuple[float, Any]] = field(default_factory=dict, repr=False)
    _readings: dict[str, tuple[str, SourceReading]] = field(default_factory=dict, repr=False)

    @property
    def run_id(self) -> str:
        """Its id."""
        return self.context.run_id

    @property
    def store(self) -> LabelStore:
        """Where its rows are."""
        return self.context.store

    @property
    def folder(self) -> RunFolder:
        """Its output folder."""
        return self.context.folder

    @cached_property
    def _begun(self) -> float:
        """Seconds since 1970: an export from before is of an earlier run with this id, whose folder was removed."""
        return self.store.run(self.run_id).created_at.timestamp()

    @cached_property
    def code_version(self) -> str:
        """Version that began it."""
        return self.store.run(self.run_id).code_version

    @property
    def export_folder(self) -> Path:
        """Where a dictionary that the server was asked for is put."""
        return self.state_folder / "dictionary"

    def dictionary(self) -> Path | None:
        """The latest export that the server knows of; None before the run has made one."""
        from autointerp.export.manifest import MANIFEST_NAME

        there = [
            path / MANIFEST_NAME
            for path in (self.folder.dictionary, self.export_folder)
            if (path / MANIFEST_NAME).is_file() and (path / MANIFEST_NAME).stat().st_mtime >= self._begun
        ]
        return max(there, key=lambda path: path.stat().st_mtime_ns).parent if there else None

    def manifest(self) -> Manifest | None:
        """What the latest export says of itself."""
        from autointerp.export.manifest import read_manifest

        found = self.dictionary()
        return None if found is None else read_manifest(found)

    def columns(self) -> DictionaryColumns | None:
        """The latest export, ready to be browsed; None before there is one. The first look at it makes them: seconds for a large one."""
        from autointerp.export.manifest import MANIFEST_NAME

        found = self.dictionary()
        if found is None:
            return None
        now = (found, (found / MANIFEST_NAME).stat().st_mtime_ns)
        with self._lock:
            if self._columns is None or self._of != now:
                self._columns = open_columns(found, self.state_folder / "columns")
                self._of = now
            return self._columns

    def reading(self, source: str, latent: int, said: Sequence[Review]) -> SourceReading:
        """How to read one latent's row now; ``said`` are its reviews.

        What is made of all latents of the source together (its place among random pushes, say) comes from the export.
        """
        # of a run that goes on, which estimates are the published ones and what files there are may change with every chunk
        state = self.store.run_state(self.run_id) or ""
        with self._lock:
            known = self._readings.get(source)
            if known is None or known[0] != state or state not in _ENDED:
                record = self.context.source(source)
                known = state, SourceReading.of_few(self.context, record, self.code_version, _NO_CAUSAL)
                self._readings[source] = known
            kept = known[1]
        return replace(kept, reviewed={latent: said} if said else {})

    def remembered(self, name: str, for_s: float, find: Callable[[], Any]) -> Any:
        """What ``find`` gave within the last ``for_s`` seconds; for what is asked every second and takes a look at every row."""
        with self._lock:
            known = self._remembered.get(name)
        if known is None or time.monotonic() - known[0] > for_s:
            known = time.monotonic(), find()
            with self._lock:
                self._remembered[name] = known
        return known[1]

    def exemplar_folder(self, source: str) -> Path | None:
        """Where a source's exemplars lie, None where there are none yet."""
        folder = self.folder.exemplars(source)
        return folder if (folder / "index.json").is_file() else None

    def real_sources(self) -> list[str]:
        """Names of the sources that are no controls."""
        return [record.name for record in self.context.sources if not record.control]

    def close(self) -> None:
        """Close what it holds open, but for the store."""
        self.context.close()


def no_such_run() -> UnknownNameError:
    """The error for a run that is not there, for whoever asks."""
    return UnknownNameError("there is no such run: the first page lists those there are.")


_ENDED = ("done", "failed", "cancelled")
_NO_CAUSAL = CausalColumns(np.empty(0, np.int64), {})


_File = tuple[int, int]
"""Device and inode."""


def _file_of(store: LabelStore) -> _File | None:
    """Which file a store is in now; None for a server's, and where there is none any more."""
    name = store.engine.url.database
    if store.engine.dialect.name != "sqlite" or not name:
        return None
    try:
        found = Path(name).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@dataclass(frozen=True)
class _Place:
    """Where a run is."""

    store: LabelStore
    folder: Path | None
    """Its output folder as it lies now; None for what the store says."""
    file: _File | None
    """The store's file when it was found."""

    @property
    def is_there(self) -> bool:
        """Whether neither the folder nor the store's file have gone, or become others."""
        return _file_of(self.store) == self.file and (self.folder is None or self.folder.is_dir())


class Shelf:
    """All runs of a server: those of the shared store, of the home's own, and of output folders."""

    def __init__(self, settings: ServerSettings) -> None:
        """Errors: StoreError."""
        self._settings = settings
        self._lock = threading.RLock()
        self._stores: dict[str, LabelStore] = {}
        self._files: dict[str, _File | None] = {}
        self._open: OrderedDict[str, ServedRun] = OrderedDict()
        self._places: dict[str, _Place] = {}
        settings.home.mkdir(parents=True, exist_ok=True)
        url = settings.store_url or sqlite_url(settings.home / DATABASE)
        self.own = open_store(url)
        """The store of the catalogue, of tokens, and of runs that the server starts."""
        self._stores[url] = self.own

    def heads(self) -> list[RunHead]:
        """All runs, the latest first."""
        found: dict[str, RunHead] = {}
        places: dict[str, _Place] = {}
        with self._lock:
            for store, place, only in self._looked_at():
                for head in store.runs():
                    if (only is None or head.id == only) and head.id not in found:
                        found[head.id] = head
                        places[head.id] = _Place(store, place, _file_of(store))
            for run_id in [run_id for run_id in self._open if places.get(run_id) != self._places.get(run_id)]:
                self._drop(run_id)
            self._places = places
        return sorted(found.values(), key=lambda head: (head.created_at, head.id), reverse=True)

    def run(self, run_id: str) -> ServedRun:
        """A run that is there by :meth:`owner_of`. Errors: UnknownNameError where there is no such run, StoreError."""
        with self._lock:
            if run_id in self._open:
                self._open.move_to_end(run_id)
                if not self._is_stale(self._open[run_id]):
                    return self._open[run_id]
                self._drop(run_id)
            if run_id not in self._places:
                self.heads()
            if run_id not in self._places or self._places[run_id].store.run_state(run_id) is None:
                self._places.pop(run_id, None)
                raise no_such_run()
            place = self._places[run_id]
            context = open_run(place.store, run_id, place.folder)
            redact_config(context.config.stored())
            run = ServedRun(context, self._settings.home / STATE_FOLDER / run_id)
            self._open[run_id] = run
            while len(self._open) > _MOST_OPEN:
                self._drop(next(iter(self._open)))
            return run

    def owner_of(self, run_id: str) -> str | None:
        """Name of the token that a run belongs to, None for everybody's. Errors: UnknownNameError, StoreError."""
        with self._lock:
            if run_id not in self._places or not self._places[run_id].is_there:
                self.heads()
            if run_id not in self._places:
                raise no_such_run()
            store = self._places[run_id].store
        with store.reading() as connection:
            found = connection.execute(select(Run.owner).where(Run.id == run_id)).first()
        if found is None:
            raise no_such_run()
        return str(found.owner) if found.owner is not None else None

    def _is_stale(self, run: ServedRun) -> bool:
        """Whether its sources have come since it was opened."""
        return not run.context.sources

    def _drop(self, run_id: str) -> None:
        self._open.pop(run_id).close()

    def _looked_at(self) -> Iterator[tuple[LabelStore, Path | None, str | None]]:
        """Stores, and of a note's folder where the run lies now and its id; a folder that cannot be read is no reason to show nothing."""
        for folder in (*self._settings.runs, self._settings.home):
            for place, note in notes_below(folder, skip_foreign=True):
                url = note.store or sqlite_url(place / DATABASE)
                try:
                    store = self._opened(url) or open_of_note(place, note)
                except StoreError:
                    continue
                self._stores[url] = store
                self._files.setdefault(url, _file_of(store))
                yield store, place, note.run_id
        yield self.own, None, None

    def _opened(self, url: str) -> LabelStore | None:
        """The store that is open at a URL, unless its file has been removed or replaced since."""
        store = self._stores.get(url)
        if store is None or store is self.own or self._files.get(url) == _file_of(store):
            return store
        self._stores.pop(url).close()
        self._files.pop(url, None)
        return None

    def close(self) -> None:
        """Close everything."""
        with self._lock:
            while self._open:
                self._drop(next(iter(self._open)))
            for store in self._stores.values():
                store.close()
