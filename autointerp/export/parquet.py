"""Write the labelled dictionary as parquet: streamed, checked, and put in place in one step (RELIABILITY.md 3.3)."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa

from autointerp.export.folder_swap import building_folder, put_in_place, sync_folder
from autointerp.export.manifest import (
    FORMAT,
    MANIFEST_NAME,
    VERDICTS_FORMAT,
    Manifest,
    ManifestFile,
    file_sha256,
    read_manifest,
)
from autointerp.export.parts import DonePart, PartWriter, Position
from autointerp.export.places import Place, is_url
from autointerp.export.resuming import Progress
from autointerp.export.schema import SCHEMA_VERSION, dictionary_columns, dictionary_schema
from autointerp.export.verdict_table import VERDICTS_FOLDER
from sae_core.errors import DiskFullError, InputError, NonFiniteError, StoreError, did_you_mean

Row = Mapping[str, Any]

ROWS_PER_GROUP = 32_768
ROWS_PER_FILE = 131_072
"""An export that was killed goes on after the last whole file."""
_PART = re.compile(rf"({VERDICTS_FOLDER}/)?(source=[^/]+/)?part-[0-9]{{5}}-[0-9a-f]{{8}}\.parquet")
"""A file that was uploaded."""
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


class StateChangedError(StoreError):
    """What was read changed meanwhile, so that the rows are not those of one moment."""


@dataclass(frozen=True)
class ExportTable:
    """One table of an export."""

    read: Callable[[Position | None, Path, Sequence[DonePart]], Iterator[pa.Table]]
    """The rows after a position (None for all), as tables of one source each, in the order of sources and latents; the folder
    and its files are those that are written already."""
    schema: pa.Schema
    """Columns that are written; what is read has ``source`` and ``latent`` at least, and may have more."""
    folder: str = ""
    """Within the dictionary."""
    whole_latents: bool = False
    """Whether several rows are about one latent, which are not parted."""


@dataclass(frozen=True)
class ExportRequest:
    """How a dictionary is written."""

    tables: Sequence[ExportTable]
    """The dictionary's own first."""
    run_meta: Mapping[str, Any]
    """Goes into the manifest as it is (JSON); its ``code_version`` is used where it has one."""
    by_source: bool = False
    """A folder a source."""
    filter: Mapping[str, Any] | None = None
    """What the manifest says of rows that were not wanted."""
    num_all: Callable[[], int] | None = None
    """Number of rows without the filter."""
    state: str = ""
    """Digest of what is read; "" for what cannot be gone on with after a kill."""
    unchanged: Callable[[], bool] = field(default=lambda: True)
    """Whether what was read is still what it was in the beginning."""
    mark: str = ""
    """Makes the names of files differ from those of other exports."""
    rows_per_group: int = ROWS_PER_GROUP
    rows_per_file: int = ROWS_PER_FILE

    @property
    def key(self) -> str:
        """Equal for exports of the same state with the same arguments; "" where there is no going on."""
        if not self.state:
            return ""
        names = [[table.folder, table.schema.names] for table in self.tables]
        sizes = [self.rows_per_group, self.rows_per_file, self.by_source, self.mark]
        parts = [SCHEMA_VERSION, self.state, dict(self.run_meta), self.filter, names, sizes]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


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
    Otherwise as :func:`export_tables`, with :class:`InputError` for a row that does not fit the schema and
    :class:`NonFiniteError` for NaN or infinite figures.
    """
    schema = dictionary_schema(scorers)
    columns = dictionary_columns(tuple(scorers))

    def read(after: Position | None, building: Path, done: Sequence[DonePart]) -> Iterator[pa.Table]:
        for batch in rows:
            for row in batch:
                _check_row(row, columns)
            if batch:
                yield _table_of(batch, schema)

    table = ExportTable(read, schema)
    return export_tables(
        ExportRequest([table], run_meta, rows_per_group=rows_per_group, rows_per_file=rows_per_file), folder
    )


def export_tables(request: ExportRequest, folder: Path | str) -> Manifest:
    """Write a dictionary to ``folder``, which may be new, empty, or a dictionary, and return its manifest.

    Memory is bounded by ``rows_per_group`` and the size of what is read at a time. The parts and ``_manifest.json`` are
    written to a hidden sibling, flushed, read again and then swapped in: whoever looks finds the old dictionary or the new
    one, whole, also if the process is killed. An export that is started again after a kill goes on with its whole files.

    Raises :class:`StoreError` for a folder that holds something else, :class:`InputError` for rows that do not fit the
    schema, :class:`NonFiniteError`, :class:`DiskFullError`; the old dictionary then stands as it was.
    """
    if is_url(folder):
        return _upload(request, str(folder))
    try:
        place = Path(os.path.realpath(folder))
        _check_replaceable(place, folder)
        key = request.key
        with building_folder(place, lambda left: bool(key) and Progress.of(left, key) is not None) as building:
            manifest = _write(request, building, key)
            if not request.unchanged():
                raise StateChangedError(f"the run changed while {folder} was written: export it again.")
            # A folder of something else may have come into being meanwhile.
            _check_replaceable(place, folder)
            put_in_place(building, place)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
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


def _upload(request: ExportRequest, url: str) -> Manifest:
    """Write a dictionary here, then put its files to a URL, the manifest last, and remove what the one before it had.

    Files have names of their own, so that whoever reads by the manifest finds the old dictionary or the new one, whole.
    Errors: StoreError, DiskFullError of the folder for temporary files.
    """
    place = Place(url)
    before = _own_files_at(place)
    with tempfile.TemporaryDirectory(prefix="autointerp-export-") as temporary:
        local = Path(temporary) / "dictionary"
        manifest = export_tables(replace(request, mark=f"-{secrets.token_hex(4)}"), local)
        names = own_files(local) - {MANIFEST_NAME}
        for name in [*sorted(names), MANIFEST_NAME]:
            place.write(name, local / name)
    for name in before - names - {MANIFEST_NAME}:
        place.remove(name)
    return manifest


def _own_files_at(place: Place) -> set[str]:
    """The files of the dictionary at a URL, where there is one; none for an empty place. Errors: StoreError for other files."""
    names = set(place.names())
    if not names:
        return set()
    if MANIFEST_NAME not in names:
        raise StoreError(
            f"{place} holds other files ({_few(names)}) and no {FORMAT}: give an empty place or a dictionary to replace."
        )
    # what an upload that was cut off left is a part by its name, and no manifest knows it
    strange = {name for name in names if not _PART.fullmatch(name)} - own_files(place.given)
    if strange:
        raise StoreError(f"{place} is a dictionary that holds other files too ({_few(strange)}): move them away first.")
    return names


def _write(request: ExportRequest, building: Path, key: str) -> Manifest:
    """All files of a dictionary, the manifest last."""
    progress = Progress.begun(building, key)
    written: list[list[DonePart]] = []
    for table in request.tables:
        parts = PartWriter(
            building,
            table.schema,
            request.rows_per_group,
            request.rows_per_file,
            table=table.folder,
            by_source=request.by_source,
            whole_latents=table.whole_latents,
            mark=request.mark,
            done=[part for part in progress.parts if part.table == table.folder],
            record=progress.add,
        )
        try:
            after = next((part.last for part in reversed(parts.parts) if part.last is not None), None)
            for rows in table.read(after, building, written[0] if written else []):
                parts.add(rows)
            parts.finish()
        finally:
            parts.close()
        written.append(parts.parts)
    told = {"code_version": str(request.run_meta.get("code_version") or _code_version())}
    told["created_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    second: ManifestFile | None = None
    run_ids = sorted({run for part in written[0] for run in part.run_ids})
    for table, own in zip(request.tables[1:], written[1:], strict=True):
        inner = _manifest(own, request, run_ids, told, format=VERDICTS_FORMAT, within=table.folder)
        path = building / table.folder / MANIFEST_NAME
        _write_text(path, inner.text())
        name = path.relative_to(building).as_posix()
        second = ManifestFile(name=name, rows=inner.num_rows, bytes=path.stat().st_size, sha256=file_sha256(path))
    manifest = _manifest(written[0], request, run_ids, told, run=dict(request.run_meta), verdicts=second)
    if request.num_all is not None and request.filter is not None:
        manifest = manifest.model_copy(update={"left_out": request.num_all() - manifest.num_rows})
    progress.end()
    _write_text(building / MANIFEST_NAME, manifest.text())
    for path in sorted({part.parent for part in building.rglob("*.parquet")}):
        sync_folder(path)
    sync_folder(building)
    return manifest


def _manifest(
    parts: Sequence[DonePart],
    request: ExportRequest,
    run_ids: list[str],
    told: Mapping[str, Any],
    within: str = "",
    **more: Any,
) -> Manifest:
    files = [part.file for part in parts]
    if within:
        files = [file.model_copy(update={"name": file.name.removeprefix(f"{within}/")}) for file in files]
    lows = [part.min_latent for part in parts if part.min_latent is not None]
    highs = [part.max_latent for part in parts if part.max_latent is not None]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        run_ids=run_ids,
        sources=sorted({source for part in parts for source in part.sources}),
        min_latent=min(lows, default=None),
        max_latent=max(highs, default=None),
        num_rows=sum(file.rows for file in files),
        files=files,
        partition_by="source" if request.by_source else None,
        filter=None if request.filter is None else dict(request.filter),
        **told,
        **more,
    )


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _check_row(row: Row, columns: Sequence[Any]) -> None:
    where = f"the row of latent {row.get('latent')!r} of {row.get('source')!r}"
    names = {column.name for column in columns}
    unknown = sorted(set(row) - names)
    if unknown:
        raise InputError(
            f"{where} has the column {unknown[0]!r}, which the dictionary does not have; {did_you_mean(unknown[0], names)}"
        )
    for column in columns:
        value = row.get(column.name)
        if value is None and column.required:
            raise InputError(f"{where} has no {column.name!r}; every row of the dictionary needs one.")
        if isinstance(value, float) and not math.isfinite(value):
            raise NonFiniteError(f"{where} has {column.name} = {value}; leave out a figure that is not defined.")


def _table_of(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_pylist(list(rows), schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"a row does not fit the dictionary's columns: {error}") from error


def _check_replaceable(place: Path, given: Path | str) -> None:
    """Whether ``place`` is free, empty or a dictionary. Raises :class:`StoreError`."""
    if not os.path.lexists(place):
        return
    advice = "give a new folder, an empty one or a dictionary to replace"
    if not place.is_dir():
        raise StoreError(f"{given} is a file and no folder to export to; {advice}.")
    names = {path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir()}
    names |= {path.name for path in place.iterdir() if path.is_dir() and not any(path.iterdir())}
    if not names:
        return
    if MANIFEST_NAME not in names:
        raise StoreError(f"{given} holds other files ({_few(names)}) and no {FORMAT}, so it is not replaced; {advice}.")
    strange = names - own_files(place)
    if strange:
        raise StoreError(
            f"{given} is a dictionary that holds other files too ({_few(strange)}), which a new one would remove; "
            "move them away, or export to another folder."
        )


def own_files(place: Path | str) -> set[str]:
    """The files that a dictionary's manifests name, and these. Raises :class:`StoreError`."""
    manifest = read_manifest(place)
    found = {MANIFEST_NAME, *(part.name for part in manifest.files)}
    if manifest.verdicts is not None:
        inner = f"{place}/{VERDICTS_FOLDER}"
        found |= {manifest.verdicts.name}
        if Place(inner).size(MANIFEST_NAME) is not None:
            found |= {f"{VERDICTS_FOLDER}/{part.name}" for part in read_manifest(inner, VERDICTS_FORMAT).files}
    return found


def _few(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _code_version() -> str:
    try:
        return version("autointerp")
    except PackageNotFoundError:  # run from a folder that was not installed
        return "unknown"
