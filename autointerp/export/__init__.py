"""The labelled dictionary as parquet files with a manifest."""

from __future__ import annotations

from autointerp.export.manifest import MANIFEST_NAME, Manifest, ManifestFile, read_manifest, verify_dictionary
from autointerp.export.parquet import export_dictionary
from autointerp.export.schema import (
    COLUMNS,
    SCHEMA_VERSION,
    Column,
    dictionary_columns,
    dictionary_schema,
    schema_markdown,
)

__all__ = [
    "COLUMNS",
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "Column",
    "Manifest",
    "ManifestFile",
    "dictionary_columns",
    "dictionary_schema",
    "export_dictionary",
    "read_manifest",
    "schema_markdown",
    "verify_dictionary",
]
