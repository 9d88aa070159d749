"""``_manifest.json``: what a dictionary's folder holds, and the check that it still does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autointerp.export.places import Place
from sae_core.errors import MissingFileError, StoreError

MANIFEST_NAME = "_manifest.json"
"""Begins with an underscore, so that pandas and pyarrow skip it when they read the folder."""
FORMAT = "autointerp.dictionary"
VERDICTS_FORMAT = "autointerp.verdicts"
"""Of the manifest of the second table."""
_READ_ROWS = 8_192
"""Rows that are decoded at a time to see that they can be."""
_AGAIN = "export the dictionary again"


class ManifestFile(BaseModel):
    """One part of the dictionary."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """File name, relative to the manifest."""
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What a dictionary's folder holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = FORMAT
    schema_version: str
    run_ids: list[str]
    """Runs whose labels stand in the rows, sorted."""
    sources: list[str]
    """Sources that the rows are about, sorted."""
    min_latent: int | None
    """Smallest latent index; null for no rows."""
    max_latent: int | None
    num_rows: int = Field(ge=0)
    files: list[ManifestFile]
    code_version: str
    created_at: str
    """When the export was written, ISO 8601, UTC."""
    run: dict[str, Any] = {}
    """What the caller told about the run."""
    partition_by: str | None = None
    """The column that is not in the files but in the names of their folders (``source=NAME``)."""
    filter: dict[str, Any] | None = None
    """Which rows and columns were wanted; null where all were."""
    left_out: int = Field(default=0, ge=0)
    """Rows that the filter left out."""
    verdicts: ManifestFile | None = None
    """Manifest of the second table, in a folder of its own; null where there is none. Its rows are judged windows."""

    def text(self) -> str:
        """As it is written; fields that older versions do not know are left out where they say nothing."""
        new = {"partition_by", "filter", "left_out", "verdicts"}
        plain = self.model_dump(mode="json")
        return json.dumps({k: v for k, v in plain.items() if k not in new or v}, indent=2, ensure_ascii=False) + "\n"


def read_manifest(folder: Path | str, format: str = FORMAT) -> Manifest:
    """The manifest of a dictionary (or of its table of verdicts). Raises :class:`MissingFileError` or :class:`StoreError`."""
    return _read(Place(folder), format)


def _read(place: Place, format: str) -> Manifest:
    path = place.shown(MANIFEST_NAME)
    try:
        content = place.read_text(MANIFEST_NAME)
    except MissingFileError as error:
        raise MissingFileError(
            f"{place} holds no {MANIFEST_NAME}; give the folder of an exported dictionary, or export it again."
        ) from error
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} cannot be read as a manifest; export the dictionary again.") from error
    try:
        manifest = Manifest.model_validate(json.loads(content))
    except (ValueError, ValidationError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read as a manifest; export the dictionary again.") from error
    if manifest.format != format:
        raise StoreError(f"{path} says the format {manifest.format!r}; {format!r} is what can be read here.")
    return manifest


def verify_dictionary(folder: Path | str) -> Manifest:
    """Check every file of a dictionary (a folder or a URL) against its manifest and return it.

    Names the broken file: missing, of another size, of another sha256, unreadable, of other rows; or a file that no manifest
    knows. Raises :class:`StoreError` (or what :func:`read_manifest` raises).
    """
    place = Place(folder)
    manifest = _read(place, FORMAT)
    known = {MANIFEST_NAME, *_verified(place, manifest)}
    if manifest.verdicts is not None:
        check_file(place, manifest.verdicts)
        inside = manifest.verdicts.name.rpartition("/")[0]
        inner = place.below(inside)
        second = _read(inner, VERDICTS_FORMAT)
        if second.num_rows != manifest.verdicts.rows:
            raise StoreError(
                f"{place.shown(MANIFEST_NAME)} says {manifest.verdicts.rows} verdicts, {inside} {second.num_rows}; {_AGAIN}."
            )
        known |= {manifest.verdicts.name, *(f"{inside}/{name}" for name in _verified(inner, second))}
    strange = [name for name in place.names() if name not in known]
    if strange:
        raise StoreError(f"{place.shown(strange[0])} is not named by {MANIFEST_NAME}; remove it, or {_AGAIN}.")
    return manifest


def _verified(place: Place, manifest: Manifest) -> list[str]:
    """The names of a table's files, each as the manifest says."""
    for part in manifest.files:
        check_file(place, part)
        with place.open(part.name) as file:
            rows = _count(file, place.shown(part.name))
        if rows != part.rows:
            raise StoreError(
                f"{place.shown(part.name)} has {rows} rows where {MANIFEST_NAME} says {part.rows}; {_AGAIN}."
            )
    if sum(part.rows for part in manifest.files) != manifest.num_rows:
        raise StoreError(
            f"{place.shown(MANIFEST_NAME)} says {manifest.num_rows} rows, its files' sum differs; {_AGAIN}."
        )
    return [part.name for part in manifest.files]


def check_file(place: Place, part: ManifestFile, *, content: bool = True) -> None:
    """Whether a file is there, of its size and (unless ``content`` is off) of its sha256. Errors: StoreError."""
    size = place.size(part.name)
    if size is None:
        raise StoreError(f"{place.shown(part.name)} is missing though {MANIFEST_NAME} names it; {_AGAIN}.")
    if size != part.bytes:
        raise StoreError(
            f"{place.shown(part.name)} has {size} bytes where {MANIFEST_NAME} says {part.bytes}; {_AGAIN}."
        )
    if content:
        found = hashlib.sha256()
        with place.open(part.name) as file:
            while piece := file.read(2**20):
                found.update(piece)
        if found.hexdigest() != part.sha256:
            raise StoreError(
                f"{place.shown(part.name)} has changed since it was written (its sha256 differs); {_AGAIN}."
            )


def count_rows(path: Path) -> int:
    """Rows that can really be read: every page is decoded and its checksum checked. Raises :class:`StoreError`."""
    try:
        with path.open("rb") as file:
            return _count(file, str(path))
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); {_AGAIN}.") from error


def _count(file: BinaryIO, shown: str) -> int:
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as table:
            return sum(batch.num_rows for batch in table.iter_batches(batch_size=_READ_ROWS))
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{shown} cannot be read as parquet ({error}); {_AGAIN}.") from error


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
