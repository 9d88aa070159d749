"""Reads a labelled dictionary as a pandas table: ``autointerp.load_dictionary``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.export.filters import RowFilter
from autointerp.export.manifest import MANIFEST_NAME, check_file, read_manifest, verify_dictionary
from autointerp.export.places import Place
from sae_core.errors import MissingFileError, StoreError

if TYPE_CHECKING:
    import pandas as pd

CATEGORIES = frozenset(
    (
        "source",
        "subject",
        "hookpoint",
        "status",
        "failure",
        "explainer",
        "precision_method",
        "precision_basis",
        "label_sides",
    )
)
"""Columns with few distinct texts."""


def load_dictionary(
    path: Path | str,
    *,
    columns: Sequence[str] | None = None,
    source: str | Sequence[str] | None = None,
    where: str | Sequence[str] | None = None,
    verify: bool = False,
) -> pd.DataFrame:
    """The labelled dictionary at ``path``: an exported folder, partitioned or not, a URL of one, or one of its files.

    ``columns``: those that are wanted (``source`` and ``latent`` come along). ``source``: only latents of these sources.
    ``where``: bounds such as ``"precision_low>=0.7"``; null never fits. Sizes of files are always compared with the manifest,
    their sha256 with ``verify=True``. Counts that may be null are Int64, status and the like categories.

    Errors: MissingFileError, StoreError for what is no whole dictionary; UnknownNameError, InputError for names and bounds.
    """
    files, opened = _files(path, verify)
    sources = () if source is None else (source,) if isinstance(source, str) else tuple(source)
    bounds = () if where is None else (where,) if isinstance(where, str) else tuple(where)
    wanted = RowFilter.of((), (), bounds, columns or ())
    wanted = RowFilter(sources, (), wanted.bounds, wanted.columns)
    whole: pa.Schema | None = None
    found: list[pa.Table] = []
    seen: set[str] = set()
    for name, partition in files:
        with opened.open(name) as raw:
            table, schema = _read(raw, opened.shown(name), partition, wanted)
        whole = whole or schema
        seen.update(table.column("source").unique().to_pylist())
        kept = wanted.rows(table)
        found.append(kept.select([field.name for field in wanted.written(schema)]))
    if whole is None:
        raise StoreError(f"{opened} names no file: export the dictionary again.")
    wanted.check(whole, sorted(seen))
    return _frame(pa.concat_tables(found).replace_schema_metadata(None), whole)


def _files(path: Path | str, verify: bool) -> tuple[list[tuple[str, str | None]], Place]:
    """Names of the files, each with the source that its folder says."""
    given = str(path)
    if given.endswith(".parquet"):
        folder, _, name = given.rpartition("/")
        place = Place(folder or ".")
        if place.size(name) is None:
            raise MissingFileError(
                f"there is no file {given}: give the folder of an exported dictionary, or one of its files."
            )
        return [(name, partition_of(f"{folder.rpartition('/')[2]}/{name}"))], place
    manifest = verify_dictionary(path) if verify else read_manifest(path)
    place = Place(path)
    if not verify:
        for part in manifest.files:
            check_file(place, part, content=False)
    return [(part.name, partition_of(part.name)) for part in manifest.files], place


def partition_of(name: str) -> str | None:
    """The source that the folder of a file says, None where files are not kept by source."""
    folder = name.rpartition("/")[0].rpartition("/")[2]
    return unquote(folder.removeprefix("source=")) if folder.startswith("source=") else None


def _read(raw: object, shown: str, partition: str | None, wanted: RowFilter) -> tuple[pa.Table, pa.Schema]:
    """The columns that are needed of one file, and all that it has."""
    try:
        with pq.ParquetFile(raw, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            if partition is not None:
                schema = schema.insert(0, pa.field("source", pa.string(), nullable=False))
            if not {"source", "latent"} <= set(schema.names):
                raise StoreError(
                    f"{shown} is no labelled dictionary (it has no columns source and latent): give a folder with {MANIFEST_NAME}, "
                    "or one of its files."
                )
            wanted.check(schema, wanted.sources)
            needed = {"source", "latent", *(bound.column for bound in wanted.bounds), *wanted.written(schema).names}
            table = file.read(columns=[name for name in file.schema_arrow.names if name in needed])
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{shown} cannot be read as parquet ({error}); export the dictionary again.") from error
    if partition is not None:
        table = table.add_column(0, schema.field("source"), pa.repeat(pa.scalar(partition), len(table)))
    return table, schema


def _frame(table: pa.Table, schema: pa.Schema) -> pd.DataFrame:
    import pandas as pd

    nullable = {pa.int64(): pd.Int64Dtype()}
    texts = [name for name in table.column_names if name in CATEGORIES]
    frame: pd.DataFrame = table.to_pandas(types_mapper=nullable.get, categories=texts)
    for name in table.column_names:
        if schema.field(name).type == pa.int64() and not schema.field(name).nullable:
            frame[name] = frame[name].astype("int64")
    return frame
