"""Write the labelled dictionary as parquet: streamed, checked, and put in place in one step (RELIABILITY.md 3.3)."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.export.folder_swap import building_folder, put_in_place, sync_folder
from autointerp.export.manifest import (
    FORMAT,
    MANIFEST_NAME,
    Manifest,
    ManifestFile,
    count_rows,
    file_sha256,
    read_manifest,
)
from autointerp.export.schema import SCHEMA_VERSION, dictionary_columns, dictionary_schema
from sae_core.errors import DiskFullError, InputError, NonFiniteError, StoreError, did_you_mean

Row = Mapping[str, Any]

ROWS_PER_GROUP = 8_192
ROWS_PER_FILE = 1_000_000
_UNUSABLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
"""What a path itself forbids: a file on the way, no permission, a name too long."""


def export_dictionary(
    rows: Iterator[list[dict[str, Any]]],
    folder: Path | str,
    run_meta: Mapping[str, Any],
    *,
    scorers: Sequence[str] = (),
    rows_per_group: int = ROWS_PER_GROUP,
    rows_per_file: int = ROWS_PER_FILE,
) -> Manifest:
    """Write batches of rows to ``folder`` and return its manifest.

    A row holds columns of :func:`~autointerp.export.schema.dictionary_schema`; a column that it leaves out is null.
    Memory is bounded by ``rows_per_group`` and the size of a batch. The parts and ``_manifest.json`` are written to a hidden
    sibling, flushed, read again and then swapped in: whoever looks finds the old dictionary or the new one, whole,
    also if the process is killed. ``run_meta`` goes into the manifest as it is (JSON); its ``code_version`` is used
    where it has one. ``folder`` may be new, empty, or a dictionary.

    Raises :class:`StoreError` for a folder that holds something else, :class:`InputError` for a row that does not
    fit the schema, :class:`NonFiniteError` for NaN or infinite figures, :class:`DiskFullError`; the old dictionary then
    stands as it was.
    """
    try:
        place = Path(os.path.realpath(folder))
        _check_replaceable(place, folder)
        with building_folder(place) as building:
            parts = _PartWriter(building, tuple(scorers), rows_per_group, rows_per_file)
            try:
                for batch in rows:
                    parts.add(batch)
                parts.finish()
            finally:
                parts.close()
            manifest = Manifest(
                schema_version=SCHEMA_VERSION,
                run_ids=sorted(parts.run_ids),
                sources=sorted(parts.sources),
                min_latent=parts.min_latent,
                max_latent=parts.max_latent,
                num_rows=sum(part.rows for part in parts.files),
                files=parts.files,
                code_version=str(run_meta.get("code_version") or _code_version()),
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                run=dict(run_meta),
            )
            with (building / MANIFEST_NAME).open("w", encoding="utf-8") as file:
                file.write(manifest.model_dump_json(indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            sync_folder(building)
            # A folder of something else may have come into being meanwhile.
            _check_replaceable(place, folder)
            put_in_place(building, place)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"no room left on the disk of {folder} for the dictionary; nothing of it was kept, what stood there "
                "before still does: free some space, or export to another folder.",
            ) from error
        if error.errno in _UNUSABLE:
            raise StoreError(
                f"{str(folder)!r} cannot be written to ({(error.strerror or str(error)).lower()}): export to another folder."
            ) from error
        raise
    return manifest


class _PartWriter:
    """Collects rows to groups, groups to part files."""

    def __init__(self, folder: Path, scorers: tuple[str, ...], rows_per_group: int, rows_per_file: int) -> None:
        if rows_per_group < 1 or rows_per_file < rows_per_group:
            raise InputError(
                f"{rows_per_group} rows a group and {rows_per_file} rows a file were given; "
                "give at least one row a group and one group a file."
            )
        self.folder = folder
        self.columns = dictionary_columns(scorers)
        self.schema = dictionary_schema(scorers)
        self.rows_per_group, self.rows_per_file = rows_per_group, rows_per_file
        self.files: list[ManifestFile] = []
        self.run_ids: set[str] = set()
        self.sources: set[str] = set()
        self.min_latent: int | None = None
        self.max_latent: int | None = None
        self._names = {column.name for column in self.columns}
        self._waiting: list[Row] = []
        self._sink: BinaryIO | None = None
        self._writer: Any = None
        self._rows_in_file = 0

    def add(self, batch: Sequence[Row]) -> None:
        for row in batch:
            self._check(row)
            self._waiting.append(row)
            if len(self._waiting) == self.rows_per_group:
                self._write_group()

    def finish(self) -> None:
        """Write what waits; a dictionary without rows still gets one (empty) file, so that its columns can be read."""
        if self._waiting or not (self.files or self._writer):
            self._write_group()
        self._end_file()

    def close(self) -> None:
        """Let go of the open file, if an error left one: without its footer, which would need the disk again."""
        if self._writer is not None:
            self._writer.is_open = False
        if self._sink is not None:
            with suppress(OSError):
                self._sink.close()

    def _check(self, row: Row) -> None:
        where = f"the row of latent {row.get('latent')!r} of {row.get('source')!r}"
        unknown = sorted(set(row) - self._names)
        if unknown:
            raise InputError(
                f"{where} has the column {unknown[0]!r}, which the dictionary does not have; "
                f"{did_you_mean(unknown[0], self._names)}"
            )
        for column in self.columns:
            value = row.get(column.name)
            if value is None and column.required:
                raise InputError(f"{where} has no {column.name!r}; every row of the dictionary needs one.")
            if isinstance(value, float) and not math.isfinite(value):
                raise NonFiniteError(f"{where} has {column.name} = {value}; leave out a figure that is not defined.")
        self.run_ids.add(str(row["run_id"]))
        self.sources.add(str(row["source"]))
        latent = int(row["latent"])
        self.min_latent = latent if self.min_latent is None else min(latent, self.min_latent)
        self.max_latent = latent if self.max_latent is None else max(latent, self.max_latent)

    def _write_group(self) -> None:
        try:
            table = pa.Table.from_pylist(self._waiting, schema=self.schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(f"a row does not fit the dictionary's columns: {error}") from error
        if self._writer is None:
            self._sink = (self.folder / f"part-{len(self.files):05d}.parquet").open("xb")
            self._writer = pq.ParquetWriter(
                self._sink, self.schema, compression="zstd", write_page_checksum=True, write_page_index=True
            )
        self._writer.write_table(table, row_group_size=self.rows_per_group)
        self._rows_in_file += len(self._waiting)
        self._waiting.clear()
        if self._rows_in_file + self.rows_per_group > self.rows_per_file:
            self._end_file()

    def _end_file(self) -> None:
        if self._writer is None or self._sink is None:
            return
        self._writer.close()
        self._sink.flush()
        os.fsync(self._sink.fileno())
        path = Path(str(self._sink.name))
        self._sink.close()
        rows = count_rows(path)
        if rows != self._rows_in_file:
            raise StoreError(
                f"{path.name} holds {rows} rows on disk of {self._rows_in_file} written; check the disk and try again."
            )
        self.files.append(ManifestFile(name=path.name, rows=rows, bytes=path.stat().st_size, sha256=file_sha256(path)))
        self._writer, self._sink, self._rows_in_file = None, None, 0


def _check_replaceable(place: Path, given: Path | str) -> None:
    """Whether ``place`` is free, empty or a dictionary. Raises :class:`StoreError`."""
    if not os.path.lexists(place):
        return
    advice = "give a new folder, an empty one or a dictionary to replace"
    if not place.is_dir():
        raise StoreError(f"{given} is a file and no folder to export to; {advice}.")
    names = {entry.name for entry in place.iterdir()}
    if not names:
        return
    if MANIFEST_NAME not in names:
        raise StoreError(f"{given} holds other files ({_few(names)}) and no {FORMAT}, so it is not replaced; {advice}.")
    strange = names - {MANIFEST_NAME} - {part.name for part in read_manifest(place).files}
    if strange:
        raise StoreError(
            f"{given} is a dictionary that holds other files too ({_few(strange)}), which a new one would remove; "
            "move them away, or export to another folder."
        )


def _few(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _code_version() -> str:
    try:
        return version("autointerp")
    except PackageNotFoundError:  # run from a folder that was not installed
        return "unknown"
