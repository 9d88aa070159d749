"""Writes one table as parquet files of bounded size, and notes which of them are done, so that a killed export goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from autointerp.export.checks import check_table
from autointerp.export.manifest import ManifestFile, count_rows, file_sha256
from sae_core.errors import InputError, StoreError

Position = tuple[str, int]
"""Source and latent of a row; rows come in the order of these."""


class DonePart(BaseModel):
    """A file that is written, flushed and read again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    """Folder of its table in the dictionary, "" for the dictionary itself."""
    file: ManifestFile
    last: Position | None
    """Of its last row; None for a file without rows."""
    sources: tuple[str, ...]
    run_ids: tuple[str, ...]
    min_latent: int | None
    max_latent: int | None


class PartWriter:
    """Tables of rows go in, files come out. Memory is bounded by a row group and the table that comes in."""

    def __init__(
        self,
        folder: Path,
        written: pa.Schema,
        rows_per_group: int,
        rows_per_file: int,
        *,
        table: str = "",
        by_source: bool = False,
        whole_latents: bool = False,
        mark: str = "",
        done: Sequence[DonePart] = (),
        record: Callable[[DonePart], None] = lambda part: None,
    ) -> None:
        """``mark`` makes the files' names differ from those of other exports; ``whole_latents`` cuts groups only where a table
        that came in ends. Errors: InputError."""
        if rows_per_group < 1 or rows_per_file < rows_per_group:
            raise InputError(
                f"{rows_per_group} rows a group and {rows_per_file} rows a file were given; "
                "give at least one row a group and one group a file."
            )
        self.parts = list(done)
        self._folder, self._table, self._mark, self._record = folder, table, mark, record
        self._by_source, self._whole = by_source, whole_latents
        self._written = _without_source(written) if by_source else written
        self._rows_per_group, self._rows_per_file = rows_per_group, rows_per_file
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._source = done[-1].last[0] if done and done[-1].last else None
        self._sink: BinaryIO | None = None
        self._writer: Any = None
        self._path = Path()
        self._outline = _Outline()
        self._rows_in_file = 0

    def add(self, table: pa.Table) -> None:
        """Rows of one source where files are kept by source. Errors: InputError, NonFiniteError, OSError."""
        if not len(table):
            return
        check_table(table)
        source = table.column("source")[0].as_py()
        if self._by_source and source != self._source:
            self._flush()
            self._end_file()
            self._source = source
        self._waiting.append(table)
        self._num_waiting += len(table)
        while self._num_waiting >= self._rows_per_group:
            self._write_group(self._num_waiting if self._whole else self._rows_per_group)

    def finish(self) -> None:
        """Write what waits; a table without rows still gets one (empty) file, so that its columns can be read."""
        self._flush()
        if not self.parts and self._writer is None:
            self._open("")
        self._end_file()

    def close(self) -> None:
        """Let go of the open file, if an error left one: without its footer, which would need the disk again."""
        if self._writer is not None:
            self._writer.is_open = False
        if self._sink is not None:
            with suppress(OSError):
                self._sink.close()

    def _flush(self) -> None:
        if self._num_waiting:
            self._write_group(self._num_waiting)

    def _write_group(self, num: int) -> None:
        whole = pa.concat_tables(self._waiting)
        group, rest = whole.slice(0, num), whole.slice(num)
        self._waiting, self._num_waiting = ([rest] if len(rest) else []), len(rest)
        if self._writer is None:
            self._open(group.column("source")[0].as_py())
        self._writer.write_table(group.select(self._written.names).cast(self._written), row_group_size=max(num, 1))
        self._outline.add(group)
        self._rows_in_file += num
        if self._rows_in_file + self._rows_per_group > self._rows_per_file:
            self._end_file()

    def _open(self, source: str) -> None:
        within = f"{self._table}/" if self._table else ""
        if self._by_source and source:
            within += f"source={quote(source, safe='')}/"
        number = sum(part.file.name.rpartition("/")[0] == within.rstrip("/") for part in self.parts)
        self._path = self._folder / f"{within}part-{number:05d}{self._mark}.parquet"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._sink = self._path.open("xb")
        self._writer = pq.ParquetWriter(
            self._sink, self._written, compression="zstd", write_page_checksum=True, write_page_index=True
        )

    def _end_file(self) -> None:
        if self._writer is None or self._sink is None:
            return
        self._writer.close()
        self._sink.flush()
        os.fsync(self._sink.fileno())
        self._sink.close()
        rows = count_rows(self._path)
        if rows != self._rows_in_file:
            raise StoreError(
                f"{self._path.name} holds {rows} rows on disk of {self._rows_in_file} written; check the disk and try again."
            )
        file = ManifestFile(
            name=self._path.relative_to(self._folder).as_posix(),
            rows=rows,
            bytes=self._path.stat().st_size,
            sha256=file_sha256(self._path),
        )
        part = self._outline.part(self._table, file)
        self.parts.append(part)
        self._record(part)
        self._writer, self._sink, self._rows_in_file, self._outline = None, None, 0, _Outline()


def _without_source(schema: pa.Schema) -> pa.Schema:
    """A partition's folder says its source, and readers refuse a column of the same name in its files."""
    return schema.remove(schema.get_field_index("source"))


class _Outline:
    """What is told of a file's rows."""

    def __init__(self) -> None:
        self.last: Position | None = None
        self.sources: set[str] = set()
        self.run_ids: set[str] = set()
        self.span: tuple[int, int] | None = None

    def add(self, group: pa.Table) -> None:
        """The rows of a group, at least one."""
        span = pc.min_max(group.column("latent")).as_py()
        low, high = self.span or (span["min"], span["max"])
        self.span = min(low, span["min"]), max(high, span["max"])
        last = group.slice(len(group) - 1)
        self.last = last.column("source")[0].as_py(), last.column("latent")[0].as_py()
        self.sources |= set(pc.unique(group.column("source")).to_pylist())
        if "run_id" in group.column_names:
            self.run_ids |= set(pc.unique(group.column("run_id")).to_pylist())

    def part(self, table: str, file: ManifestFile) -> DonePart:
        """The file with all that."""
        low, high = self.span or (None, None)
        return DonePart(
            table=table,
            file=file,
            last=self.last,
            sources=tuple(sorted(self.sources)),
            run_ids=tuple(sorted(self.run_ids)),
            min_latent=low,
            max_latent=high,
        )
