"""Writes a run in another tool's format: part by part into a hidden folder, which then takes its place in one step.

Memory does not depend on the run: a part holds one latent at a time. After a kill the same command goes on with the parts that are whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from autointerp.exchange.base import ExchangeFormat
from autointerp.exchange.output_files import OutputFiles, WrittenFile
from autointerp.exchange.run_reading import RunReading
from autointerp.export.filters import RowFilter
from autointerp.export.folder_swap import building_folder, put_in_place, sync_folder
from autointerp.export.parquet import StateChangedError
from autointerp.export.places import is_url
from autointerp.pipeline.atomic_files import disk_full
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.folder import usable_folder
from autointerp.store.snapshot import snapshot, state_of
from sae_core.errors import InputError, StoreError

NOTE_NAME = "_exchange.json"
"""Says what the folder is, and by which files it may be replaced."""
PROGRESS_NAME = "_progress.jsonl"
CARD_NAME = "README.md"
_TRIES = 3
"""Times that a run which changes while it is read is read again."""


class ExchangeNote(BaseModel):
    """What an export's folder holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    """Kind of the format."""
    settings: dict[str, Any]
    """Its fields."""
    run_id: str
    code_version: str
    created_at: str
    """When it was written, ISO 8601, UTC."""
    filter: dict[str, Any] | None
    """Which latents were wanted; null for all."""
    counts: dict[str, int]
    """How many latents, labels, windows and the like were written."""
    files: list[WrittenFile]


class _DonePart(BaseModel):
    """One line of the progress file behind the first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    counts: dict[str, int]
    files: list[WrittenFile]


Card = Callable[[ExchangeNote], str]
"""Makes the text of a card."""


def export_exchange(
    context: RunContext,
    folder: Path | str,
    format: ExchangeFormat,
    wanted: RowFilter | None = None,
    card: Card | None = None,
) -> ExchangeNote:
    """Write a run to ``folder``, which may be new, empty, or such an export, whole or not at all, as the run is at one moment.

    Errors: StoreError, DiskFullError, InputError for a run or a filter that does not fit the format, NonFiniteError.
    """
    chosen = wanted or RowFilter()
    if is_url(folder):
        raise InputError(f"{folder} is a URL, and {format.kind} is written to folders of this machine: give one.")
    if chosen.columns:
        raise InputError(f"{format.kind} has no columns to choose among: leave --columns out.")
    for left in reversed(range(_TRIES)):
        try:
            return _export(context, Path(os.path.realpath(folder)), format, chosen, card)
        except StateChangedError:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def read_note(folder: Path) -> ExchangeNote | None:
    """The note of an export; None where there is none that can be read."""
    try:
        return ExchangeNote.model_validate_json((folder / NOTE_NAME).read_bytes())
    except (OSError, ValidationError):
        return None


def _export(
    context: RunContext, place: Path, format: ExchangeFormat, wanted: RowFilter, card: Card | None
) -> ExchangeNote:
    with snapshot(context.store) as store, usable_folder(place, "the folder"), disk_full(place):
        state = state_of(store, context.run_id)
        run = RunReading.of(context, store, wanted)
        format.check(run)
        _check_replaceable(place)
        key = _key(run, format, state)
        with building_folder(place, lambda left: _Progress.key_of(left) == key) as building:
            note = _write(run, format, building, key)
            if card is not None:
                files = OutputFiles(building)
                with files.binary(CARD_NAME) as file:
                    file.write(card(note).encode())
                note = note.model_copy(update={"files": [*note.files, *files.written]})
            if not store.holds and state_of(store, context.run_id) != state:
                raise StateChangedError(f"the run changed while {place} was written: export it again.")
            _write_note(building, note)
            _check_replaceable(place)  # something else may have come into being there meanwhile
            put_in_place(building, place)
    return note


def _write(run: RunReading, format: ExchangeFormat, building: Path, key: str) -> ExchangeNote:
    progress = _Progress(building, key)
    counts: Counter[str] = Counter()
    written: list[WrittenFile] = []
    for part in format.parts(run):
        done = progress.done.get(part.name)
        if done is None:
            files = OutputFiles(building)
            found = dict(part.write(files))
            if not any(found.values()):
                files.drop()
            done = _DonePart(part=part.name, counts=found, files=files.written)
            progress.add(done)
        counts.update(done.counts)
        written += done.files
    files = OutputFiles(building)
    format.finish(run, files, counts)
    progress.end()
    return ExchangeNote(
        format=format.kind,
        settings=format.told,
        run_id=run.run.id,
        code_version=run.run.code_version,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        filter=run.wanted.told,
        counts=dict(counts),
        files=written + files.written,
    )


def _write_note(building: Path, note: ExchangeNote) -> None:
    with (building / NOTE_NAME).open("w", encoding="utf-8") as file:
        file.write(note.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    for folder in sorted({path.parent for path in building.rglob("*")}):
        sync_folder(folder)


def _key(run: RunReading, format: ExchangeFormat, state: str) -> str:
    """Equal for exports of the same state with the same settings."""
    parts = [state, run.run.id, run.run.digest, run.run.code_version, format.told, run.wanted.told]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _check_replaceable(place: Path) -> None:
    """Whether ``place`` is free, empty or an export. Errors: StoreError."""
    if not os.path.lexists(place):
        return
    advice = "give a new folder, an empty one, or an earlier export to replace"
    if not place.is_dir():
        raise StoreError(f"{place} is a file and no folder to write to: {advice}.")
    names = {path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir()}
    if not names:
        return
    note = read_note(place)
    own = set() if note is None else {NOTE_NAME, *(file.name for file in note.files)}
    strange = sorted(names - own)
    if strange:
        shown = ", ".join(strange[:3]) + (f" and {len(strange) - 3} more" if len(strange) > 3 else "")
        raise StoreError(f"{place} holds other files ({shown}), which an export would remove: {advice}.")


class _Progress:
    """The parts of a folder that are whole, a line each behind a line with the key."""

    def __init__(self, building: Path, key: str) -> None:
        self._path = building / PROGRESS_NAME
        self.done = self._whole(building) if self.key_of(building) == key else {}
        kept = {building / file.name for part in self.done.values() for file in part.files}
        for path in building.rglob("*"):
            if path.is_file() and path not in kept:
                path.unlink()
        self._append({"key": key})
        for part in self.done.values():
            self.add(part)

    @staticmethod
    def key_of(left: Path) -> str | None:
        """The key of an export that was left unfinished; None where there is none."""
        try:
            with (left / PROGRESS_NAME).open(encoding="utf-8") as file:
                return str(json.loads(file.readline())["key"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _whole(self, building: Path) -> dict[str, _DonePart]:
        found: dict[str, _DonePart] = {}
        for line in self._path.read_text(encoding="utf-8").splitlines()[1:]:
            try:
                part = _DonePart.model_validate_json(line)
            except ValidationError:  # the line that was being written
                break
            if not all(_is_whole(building, file) for file in part.files):
                break
            found[part.part] = part
        return found

    def add(self, part: _DonePart) -> None:
        """Note one more."""
        self._append(part.model_dump(mode="json"))

    def _append(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def end(self) -> None:
        """Remove the note: the export is whole."""
        self._path.unlink(missing_ok=True)


def _is_whole(building: Path, file: WrittenFile) -> bool:
    path = building / file.name
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
