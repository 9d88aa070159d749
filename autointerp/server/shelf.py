"""The runs that a server shows, and what is kept open of them: the store, the exemplars, the dictionary's columns."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

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
    _readings: dict[str, SourceReading] = field(default_factory=dict, repr=False)

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
            if (path / MANIFEST_NAME).is_file()
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
        with self._lock:
            if source not in self._readings:
                record = self.context.source(source)
                self._readings[source] = SourceReading.of_few(self.context, record, self.code_version, _NO_CAUSAL)
            kept = self._readings[source]
        return replace(kept, reviewed={latent: said} if said else {})

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


_NO_CAUSAL = CausalColumns(np.empty(0, np.int64), {})


class Shelf:
    """All runs of a server: those of the shared store, of the home's own, and of output folders."""

    def __init__(self, settings: ServerSettings) -> None:
        """Errors: StoreError."""
        self._settings = settings
        self._lock = threading.RLock()
        self._stores: dict[str, LabelStore] = {}
        self._open: OrderedDict[str, ServedRun] = OrderedDict()
        self._places: dict[str, tuple[LabelStore, Path | None]] = {}
        settings.home.mkdir(parents=True, exist_ok=True)
        url = settings.store_url or sqlite_url(settings.home / DATABASE)
        self.own = open_store(url)
        """The store of the catalogue, of tokens, and of runs that the server starts."""
        self._stores[url] = self.own

    def heads(self) -> list[RunHead]:
        """All runs, the latest first."""
        found: dict[str, RunHead] = {}
        with self._lock:
            for store, place, only in self._looked_at():
                for head in store.runs():
                    if only is None or head.id == only:
                        found.setdefault(head.id, head)
                        if self._places.get(head.id, (None, None))[1] is None:
                            self._places[head.id] = (store, place if only is not None else None)
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
            if run_id not in self._places or self._places[run_id][0].run_state(run_id) is None:
                self._places.pop(run_id, None)
                raise no_such_run()
            store, place = self._places[run_id]
            context = open_run(store, run_id, place)
            redact_config(context.config.stored())
            run = ServedRun(context, self._settings.home / STATE_FOLDER / run_id)
            self._open[run_id] = run
            while len(self._open) > _MOST_OPEN:
                self._drop(next(iter(self._open)))
            return run

    def owner_of(self, run_id: str) -> str | None:
        """Name of the token that a run belongs to, None for everybody's. Errors: UnknownNameError, StoreError."""
        with self._lock:
            if run_id not in self._places:
                self.heads()
            if run_id not in self._places:
                raise no_such_run()
            store = self._places[run_id][0]
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
            for place, note in notes_below(folder):
                url = note.store or sqlite_url(place / DATABASE)
                try:
                    store = self._stores.get(url) or open_of_note(place, note)
                except StoreError:
                    continue
                self._stores[url] = store
                yield store, place, note.run_id
        yield self.own, None, None

    def close(self) -> None:
        """Close everything."""
        with self._lock:
            while self._open:
                self._drop(next(iter(self._open)))
            for store in self._stores.values():
                store.close()
