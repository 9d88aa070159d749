"""Finds runs and stores by what people type: an output folder, a run id or the beginning of one, a store's URL. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from autointerp.pipeline.folder import DATABASE, NOTE, RunFolder, RunNote
from autointerp.store import LabelStore, open_store
from autointerp.store.opening import sqlite_url
from sae_core.errors import StoreError

_STORE_VARIABLE = "AUTOINTERP_STORE__URL"


def find_run(given: str, store: str | None = None, around: Path | None = None) -> tuple[LabelStore, str]:
    """The store and the id of the run that ``given`` names.

    ``given`` is an output folder, a run id or a unique beginning of one; ids are looked up in ``store`` (URL or folder),
    else in the store that the environment names, else in the output folders at most two levels below ``around`` (the current folder). Errors: StoreError.
    """
    folder = Path(given)
    if folder.is_dir():
        note = RunFolder(folder).read_note()
        if note is None:
            raise StoreError(
                f"the folder {given!r} is not the output of a run (it has no {NOTE}): give one that is, or a run id."
            )
        return open_of_note(folder, note), note.run_id
    if store is not None:
        found = open_target(store)
        return found, found.run(given).id
    shared = shared_store()
    if shared is not None and any(run.id.startswith(given) for run in shared.runs()):
        return shared, shared.run(given).id
    matches = {
        note.run_id: (place, note) for place, note in notes_below(around or Path()) if note.run_id.startswith(given)
    }
    if given in matches:
        matches = {given: matches[given]}
    if len(matches) == 1:
        place, note = next(iter(matches.values()))
        return open_of_note(place, note), note.run_id
    if matches:
        raise StoreError(
            f"{given!r} is the beginning of {len(matches)} runs ({', '.join(sorted(matches))}): give more of it."
        )
    raise StoreError(
        f"no run {given!r} was found below {str((around or Path()).resolve())!r}: give its output folder, "
        "or --store with the folder or the URL of its store."
    )


def shared_store() -> LabelStore | None:
    """The store that the environment names, None where it names none. Errors: StoreError."""
    url = _url_of_environment()
    return open_store(url, create=False) if url else None


def _url_of_environment() -> str | None:
    from autointerp.cluster.settings import load_settings

    return load_settings().store_url if os.environ.get(_STORE_VARIABLE) else None


def open_target(given: str) -> LabelStore:
    """The store that a URL, an output folder or a database file names. Errors: StoreError."""
    if "://" in given:
        return open_store(given, create=False)
    path = Path(given)
    if path.is_dir():
        note = RunFolder(path).read_note()
        if note is not None:
            return open_of_note(path, note)
        path = path / DATABASE
    if not path.is_file():
        raise StoreError(f"there is no store at {given!r}: give an output folder, a database file, or a store's URL.")
    return open_store(sqlite_url(path), create=False)


def stores_below(around: Path) -> Iterator[LabelStore]:
    """The stores of the output folders at most two levels below a folder, each once."""
    seen: set[str] = set()
    for place, note in notes_below(around):
        url = note.store or sqlite_url(place / DATABASE)
        if url not in seen:
            seen.add(url)
            yield open_of_note(place, note)


def open_of_note(folder: Path, note: RunNote) -> LabelStore:
    """The store that a folder's note names. Errors: StoreError."""
    if note.store is None:
        return open_store(sqlite_url(folder / DATABASE), create=False)
    # the note has no password; whoever needs one gives the URL in the environment, as for the run
    return open_store(_url_of_environment() or note.store, create=False)


def notes_below(around: Path, *, skip_foreign: bool = False) -> Iterator[tuple[Path, RunNote]]:
    """The output folders at most two levels below a folder (or it itself), with what their notes say.

    Errors: StoreError for a file of that name which is no note, unless ``skip_foreign``.
    """
    for pattern in (NOTE, f"*/{NOTE}", f"*/*/{NOTE}"):
        for path in sorted(around.glob(pattern)):
            try:
                note = RunFolder(path.parent).read_note()
            except StoreError:
                if not skip_foreign:
                    raise
                continue
            if note is not None:
                yield path.parent, note
