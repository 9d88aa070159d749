"""Stores a run for workers to do: a row, and a note in its folder.

Nothing is loaded, planned or sent, so it takes a moment however large the run is, and no broker need be there; the reconciler finds
the row within seconds.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import select

from autointerp.cluster.controlling import check_submitted
from autointerp.cluster.secrets import with_password
from autointerp.cluster.settings import load_settings
from autointerp.config import RunConfig
from autointerp.pipeline.folder import NOTE, RunFolder, usable_folder
from autointerp.pipeline.starting import claim_folder
from autointerp.store import LabelStore, open_store
from autointerp.store.models import Run
from sae_core.errors import ConfigError, StoreError

_LONGEST_KEY = 200


class Submitted(NamedTuple):
    """A run that workers will do."""

    run_id: str
    folder: Path
    new: bool
    """False where the same submission had been made before."""
    state: str = "running"


def submit_run(
    config: RunConfig, name: str, out: Path, *, key: str | None = None, owner: str | None = None
) -> Submitted:
    """Store the configuration's run in ``config.store.url``, with ``out`` as its folder, which all workers must see.

    ``key``: what the caller calls this submission; submitted again with the same key and configuration, however often and from wherever,
    it is the same run. ``owner``: name of the token that asked a server for it. Errors: ConfigError without a store that workers share; StoreError for a key or a folder of another configuration, or a
    folder whose run is done right there.
    """
    if config.store.url is None:
        raise ConfigError(
            "a run is submitted to a store that its workers share, and none is given: set AUTOINTERP_STORE__URL (or store.url) to its "
            "URL, for instance postgresql+psycopg://user@host/autointerp, or do the run right here by `autointerp run`."
        )
    if key is not None and not 0 < len(key) <= _LONGEST_KEY:
        raise ConfigError(f"--key has {len(key)} characters: give 1 to {_LONGEST_KEY}.")
    store = open_store(with_password(config.store.url, load_settings().store.password_file))
    try:
        before = None if key is None else _of_key(store, key)
        new = before is None
        if before is None:
            folder = RunFolder(out.absolute())
            with usable_folder(folder.root):
                folder.root.mkdir(parents=True, exist_ok=True)
            try:
                note, new = claim_folder(store, config, name, folder, submitted=True, submit_key=key, owner=owner)
                before = store.run(note.run_id)
            except StoreError:
                before = None if key is None else _of_key(store, key)
                if before is None:
                    raise
                new = False  # a submission with the same key was quicker
                _leave(folder, store)
        if key is not None and (before.submit_key != key or before.digest != config.digest):
            raise StoreError(
                f"the key {key!r} and the run {before.id} in {before.folder!r} do not belong together (another key or another "
                "configuration was submitted before): give this submission another --key, or another --out."
            )
        check_submitted(before)
        return Submitted(before.id, Path(before.folder), new, before.state)
    finally:
        store.close()


def _leave(folder: RunFolder, store: LabelStore) -> None:
    """Take the note away that names a run that never came to be."""
    note = folder.read_note()
    if note is not None and not store.has_run(note.run_id):
        (folder.root / NOTE).unlink(missing_ok=True)
        with suppress(OSError):
            folder.root.rmdir()


def _of_key(store: LabelStore, key: str) -> Run | None:
    with store.reading() as connection:
        run_id = connection.execute(select(Run.id).where(Run.submit_key == key)).scalar()
    return None if run_id is None else store.run(run_id)
