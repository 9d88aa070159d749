"""Makes the columns of an exported dictionary: read by row group, so memory does not depend on its size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autointerp.browsing.columns import (
    OUTLINE_NAME,
    TEXTS_NAME,
    WORDS_NAME,
    DictionaryColumns,
    Outline,
    SourceRows,
)
from autointerp.browsing.words import WordIndex
from sae_core.errors import StoreError

if TYPE_CHECKING:
    import pyarrow as pa

TEXTS = ("label", "label_output", "failure_message")
"""Columns whose words are shown in a table; those of the first two are searched."""
SEARCHED = ("label", "label_output")
_MOST_TEXTS = 2**16 - 1
"""Of a column that is kept as codes: names of models, reasons of failures and the like."""


def open_columns(dictionary: Path, folder: Path) -> DictionaryColumns:
    """The columns of a dictionary, kept in ``folder`` and made anew where the dictionary is another one by now.

    Errors: StoreError, MissingFileError for what is no whole dictionary; OSError where there is no room.
    """
    from autointerp.export.folder_swap import building_folder, put_in_place

    wanted = _digest(dictionary)
    for _ in range(2):
        try:
            found = DictionaryColumns(folder)
        except StoreError:
            found = None
        if found is not None and found.outline.made_of == wanted:
            return found
        with building_folder(folder) as building:
            build_columns(dictionary, building)
            put_in_place(building, folder)
        wanted = _digest(dictionary)  # a new export may have come in between
    return DictionaryColumns(folder)


def build_columns(dictionary: Path, folder: Path) -> DictionaryColumns:
    """Write the columns of ``dictionary`` to an empty folder. Errors: StoreError, MissingFileError."""
    import pyarrow as pa

    from autointerp.export.manifest import read_manifest

    digest = _digest(dictionary)
    manifest = read_manifest(dictionary)
    writer = _Writer(folder, manifest.num_rows)
    for name, table in _tables(dictionary, [part.name for part in manifest.files]):
        writer.add(name, table)
    if writer.rows != manifest.num_rows:
        raise StoreError(
            f"{dictionary} has {writer.rows} rows of {manifest.num_rows} by its manifest: export it again."
        )
    texts = pa.concat_tables(writer.texts) if writer.texts else None
    with pa.OSFile(str(folder / TEXTS_NAME), "wb") as sink:
        schema = pa.schema([(name, pa.string()) for name in TEXTS])
        with pa.ipc.new_file(sink, schema) as file:
            if texts is not None:
                file.write_table(texts.cast(schema))
    WordIndex.build(folder / WORDS_NAME, _searched(writer.texts))
    outline = Outline(
        made_of=digest,
        num_rows=writer.rows,
        sources=tuple(writer.sources),
        numbers=tuple(name for name in writer.numbers if name != "latent"),
        categories={name: tuple(values) for name, values in writer.categories.items()},
        texts=TEXTS,
    )
    (folder / OUTLINE_NAME).write_text(outline.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return DictionaryColumns(folder)


def _digest(dictionary: Path) -> str:
    from autointerp.export.manifest import MANIFEST_NAME, read_manifest

    read_manifest(dictionary)
    return hashlib.sha256((dictionary / MANIFEST_NAME).read_bytes()).hexdigest()


def _tables(dictionary: Path, names: list[str]) -> Iterator[tuple[str | None, pa.Table]]:
    """Row group by row group, with the source that a partition's folder says."""
    import pyarrow.parquet as pq

    from autointerp.export.loading import partition_of

    for name in names:
        with pq.ParquetFile(dictionary / name, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                yield partition_of(name), file.read_row_group(group)


def _searched(tables: list[pa.Table]) -> Iterator[tuple[int, str]]:
    row = 0
    for table in tables:
        for texts in zip(*(table.column(name).to_pylist() for name in SEARCHED), strict=True):
            if said := " | ".join(text for text in texts if text):
                yield row, said
            row += 1


class _Writer:
    """Row groups go in, a file a column comes out."""

    def __init__(self, folder: Path, num_rows: int) -> None:
        self._folder, self._num_rows = folder, num_rows
        self.rows = 0
        self.sources: list[SourceRows] = []
        self.numbers: dict[str, Any] = {}
        self.categories: dict[str, dict[str, int]] = {}
        self._codes: dict[str, Any] = {}
        self.texts: list[pa.Table] = []
        if num_rows:
            self._file("latent", np.int64, 0)
        else:
            np.save(folder / "latent.npy", np.empty(0, np.int64))

    def add(self, source: str | None, table: pa.Table) -> None:
        """The next rows."""
        import pyarrow as pa
        import pyarrow.compute as pc

        first, end = self.rows, self.rows + len(table)
        self._add_sources([source] * len(table) if source is not None else table.column("source").to_pylist())
        for field in table.schema:
            column = table.column(field.name).combine_chunks()
            if field.name == "latent":
                self._file(field.name, np.int64, 0)[first:end] = column.to_numpy(zero_copy_only=False)
            elif pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
                if column.null_count < len(column) or field.name in self.numbers:
                    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
                    self._file(field.name, np.float64, np.nan)[first:end] = values
            elif pa.types.is_string(field.type) and field.name not in (*TEXTS, "source"):
                known = self.categories.setdefault(field.name, {})
                coded = column.dictionary_encode()
                if len(known) + len(coded.dictionary) >= _MOST_TEXTS:
                    raise StoreError(
                        f"the column {field.name!r} has more than {_MOST_TEXTS:,} different texts, and only {', '.join(TEXTS)} may: "
                        "export the dictionary without it (--columns)."
                    )
                own = [known.setdefault(text, len(known) + 1) for text in coded.dictionary.to_pylist()]
                codes = np.array([0, *own], np.uint16)[
                    pc.fill_null(pc.add(coded.indices, 1), 0).to_numpy(zero_copy_only=False)
                ]
                self._file(field.name, np.uint16, 0)[first:end] = codes
        kept = [
            table.column(name) if name in table.schema.names else pa.nulls(len(table), pa.string()) for name in TEXTS
        ]
        self.texts.append(pa.table(kept, names=list(TEXTS)))
        self.rows = end

    def _add_sources(self, names: list[str]) -> None:
        row = self.rows
        for name in dict.fromkeys(names):
            count = names.count(name)
            if self.sources and self.sources[-1].name == name:
                self.sources[-1] = self.sources[-1].model_copy(update={"end": self.sources[-1].end + count})
            elif any(known.name == name for known in self.sources):
                raise StoreError(f"the rows of the source {name!r} do not stand together: export the dictionary again.")
            else:
                self.sources.append(SourceRows(name=name, first=row, end=row + count))
            row += count

    def _file(self, name: str, kind: Any, empty: Any) -> Any:
        """The mapped file of a column; rows so far are empty where it was null everywhere."""
        files = self.numbers if kind is not np.uint16 else self._codes
        if name not in files:
            shape = (self._num_rows,)
            files[name] = np.lib.format.open_memmap(self._folder / f"{name}.npy", "w+", kind, shape)
            if self.rows and empty != 0:
                files[name][: self.rows] = empty
        return files[name]
