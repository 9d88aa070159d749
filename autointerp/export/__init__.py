"""The labelled dictionary as parquet files with a manifest."""

from __future__ import annotations

from autointerp.export.filters import RowFilter
from autointerp.export.manifest import MANIFEST_NAME, Manifest, ManifestFile, read_manifest, verify_dictionary
from autointerp.export.parquet import ExportRequest, ExportTable, export_dictionary, export_tables
from autointerp.export.parts import DonePart
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
    "DonePart",
    "ExportRequest",
    "ExportTable",
    "Manifest",
    "ManifestFile",
    "RowFilter",
    "dictionary_columns",
    "dictionary_schema",
    "export_dictionary",
    "export_tables",
    "read_manifest",
    "schema_markdown",
    "verify_dictionary",
]
