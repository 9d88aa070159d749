"""``_manifest.json``: what a dictionary's folder holds, and the check that it still does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sae_core.errors import MissingFileError, StoreError

MANIFEST_NAME = "_manifest.json"
"""Begins with an underscore, so that pandas and pyarrow skip it when they read the folder."""
FORMAT = "autointerp.dictionary"


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


def read_manifest(folder: Path | str) -> Manifest:
    """The manifest of a dictionary. Raises :class:`MissingFileError` or :class:`StoreError`."""
    path = Path(folder) / MANIFEST_NAME
    try:
        content = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(
            f"{folder} holds no {MANIFEST_NAME}; give the folder of an exported dictionary, or export it again."
        ) from error
    try:
        manifest = Manifest.model_validate(json.loads(content))
    except (ValueError, ValidationError) as error:
        raise StoreError(f"{path} cannot be read as a manifest; export the dictionary again.") from error
    if manifest.format != FORMAT:
        raise StoreError(f"{path} says the format {manifest.format!r}; {FORMAT!r} is what can be read here.")
    return manifest


def verify_dictionary(folder: Path | str) -> Manifest:
    """Check every file of a dictionary against its manifest and return it.

    Names the broken file: missing, of another size, of another sha256, unreadable, of other rows; or a parquet file
    that the manifest does not know. Raises :class:`StoreError` (or what :func:`read_manifest` raises).
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    again = "export the dictionary again"
    for part in manifest.files:
        path = folder / part.name
        if not path.is_file():
            raise StoreError(f"{path} is missing though {MANIFEST_NAME} names it; {again}.")
        size = path.stat().st_size
        if size != part.bytes:
            raise StoreError(f"{path} has {size} bytes where {MANIFEST_NAME} says {part.bytes}; {again}.")
        if file_sha256(path) != part.sha256:
            raise StoreError(f"{path} has changed since it was written (its sha256 differs); {again}.")
        rows = count_rows(path)
        if rows != part.rows:
            raise StoreError(f"{path} has {rows} rows where {MANIFEST_NAME} says {part.rows}; {again}.")
    known = {part.name for part in manifest.files}
    strange = sorted(path.name for path in folder.glob("*.parquet") if path.name not in known)
    if strange:
        raise StoreError(f"{folder / strange[0]} is not named by {MANIFEST_NAME}; remove it, or {again}.")
    if sum(part.rows for part in manifest.files) != manifest.num_rows:
        raise StoreError(f"{folder / MANIFEST_NAME} says {manifest.num_rows} rows, its files' sum differs; {again}.")
    return manifest


def count_rows(path: Path) -> int:
    """Rows that can really be read: every page is decoded and its checksum checked. Raises :class:`StoreError`."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return sum(batch.num_rows for batch in file.iter_batches())
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path} cannot be read as parquet ({error}); export the dictionary again.") from error


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
