"""Exports a run's labelled dictionary to a folder; what the ``export`` stage and the ``export`` command share."""

from __future__ import annotations

import gc
import json
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import func, select, type_coerce
from sqlalchemy.types import Text

from autointerp.pipeline.context import RunContext
from autointerp.pipeline.dictionary_pages import SourceReading, pages
from autointerp.pipeline.dictionary_rows import judge_kinds
from autointerp.review.effective import effective_labels
from autointerp.review.recording import reviews
from autointerp.review.seen import seen_by_editors
from autointerp.review.shown_steering import windows_shown
from autointerp.store.models import LabelRow, VerdictRow
from autointerp.store.snapshot import snapshot, state_of

if TYPE_CHECKING:
    import pyarrow as pa

    from autointerp.export import DonePart, Manifest, RowFilter

Item = TypeVar("Item")
GROUP, FILE = 16_384, 131_072
"""Rows of a row group and of a file; after a kill an export goes on behind the last whole file."""
_TRIES = 3
"""Times that a run which changes while it is read is read again."""
_VERDICT_LATENTS = 512
"""Latents whose verdicts are in memory at a time."""


@dataclass(frozen=True)
class ExportOptions:
    """What of a run is exported, and how."""

    filter: RowFilter | None = None
    """None for all rows."""
    by_source: bool = False
    """A folder a source."""
    verdicts: bool = False
    """A second table with every judged window."""


def export_run(context: RunContext, folder: Path | str, options: ExportOptions | None = None) -> Manifest:
    """Write the dictionary to ``folder`` (or a URL), whole or not at all, as the run is at one moment. After a kill it goes on.

    Errors: StoreError, DiskFullError, UnknownNameError for a filter's names.
    """
    from autointerp.export.parquet import StateChangedError

    for left in reversed(range(_TRIES)):
        try:
            return _export(context, folder, options or ExportOptions())
        except StateChangedError:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def _export(context: RunContext, folder: Path | str, options: ExportOptions) -> Manifest:
    from autointerp.export import ExportRequest, ExportTable, RowFilter, dictionary_schema, export_tables
    from autointerp.export.verdict_table import VERDICTS_FOLDER, verdict_schema

    wanted = options.filter or RowFilter()
    with snapshot(context.store) as store:
        # with a database that holds no state itself, what changed is seen from outside
        state = state_of(store, context.run_id)
        reading = _Reading(replace(context, store=store), wanted)
        schema = dictionary_schema(judge_kinds(context))
        wanted.check(schema, reading.all_sources)
        tables = [
            ExportTable(lambda after, building, done: reading.rows(after, schema), wanted.written(schema)),
        ]
        if options.verdicts:
            tables.append(ExportTable(reading.verdicts, verdict_schema(), VERDICTS_FOLDER, whole_latents=True))
        request = ExportRequest(
            tables,
            reading.run_meta(),
            by_source=options.by_source,
            filter=wanted.told,
            num_all=reading.num_all,
            state=state,
            rows_per_group=GROUP,
            rows_per_file=FILE,
            unchanged=lambda: store.holds or state_of(store, context.run_id) == state,
        )
        with _counting_references_alone():
            return export_tables(request, folder)


@contextmanager
def _counting_references_alone() -> Iterator[None]:
    """Rows hold no cycles, and looking for some among millions of them takes a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Reading:
    """A run in one state of its store."""

    def __init__(self, context: RunContext, wanted: RowFilter) -> None:
        self.context, self.wanted = context, wanted
        self.run = context.store.run(context.run_id)
        self.all_sources = [source.name for source in context.sources if not source.control]

    @property
    def sources(self) -> list[str]:
        """Those that are wanted, in the run's order."""
        return [name for name in self.all_sources if not self.wanted.sources or name in self.wanted.sources]

    def run_meta(self) -> dict[str, Any]:
        """What the manifest says of the run."""
        meta: dict[str, Any] = {
            "run_id": self.run.id,
            "name": self.run.name,
            "digest": self.run.digest,
            "config": self.run.config,
            "code_version": self.run.code_version,
        }
        if seen := self._seen_by_editors():
            meta["seen"] = seen
        return meta

    def num_all(self) -> int:
        """Rows of all sources."""
        query = select(func.count()).where(
            LabelRow.run_id == self.context.run_id, LabelRow.source.in_(self.all_sources)
        )
        with self.context.store.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def _after(self, after: tuple[str, int] | None) -> Iterator[tuple[str, int]]:
        """The sources that are left, and the latent in each after which rows are wanted."""
        names = self.sources
        if after is not None:
            names = names[names.index(after[0]) :]
        for name in names:
            yield name, after[1] if after is not None and name == after[0] else -1

    def rows(self, after: tuple[str, int] | None, schema: pa.Schema) -> Iterator[pa.Table]:
        """The wanted rows; a page may leave none."""
        from autointerp.pipeline.dictionary_table import PageTables

        tables = PageTables(schema)
        for name, latent in self._after(after):
            source = SourceReading.of(self.context, self.context.source(name), self.run.code_version)
            with closing(_one_ahead(pages(source, latent))) as ready:
                yield from _one_ahead(self.wanted.rows(tables.of(page)) for page in ready)

    def verdicts(self, after: tuple[str, int] | None, building: Path, done: Sequence[DonePart]) -> Iterator[pa.Table]:
        """Verdicts on the latents that the dictionary has, as its files say."""
        from autointerp.export.verdict_table import verdicts_of

        for name, latent in self._after(after):
            latents = [n for n in _latents_of(name, building, done) if n > latent]
            for start in range(0, len(latents), _VERDICT_LATENTS):
                part = latents[start : start + _VERDICT_LATENTS]
                if rows := self._verdict_rows(name, part):
                    yield verdicts_of(name, rows)

    def _verdict_rows(self, source: str, latents: Sequence[int]) -> list[tuple[int, str, str, Any]]:
        table, wanted = VerdictRow, frozenset(latents)
        query = select(table.latent, table.scorer, table.explainer, type_coerce(table.items, Text)).where(
            table.run_id == self.context.run_id, table.source == source, table.latent.between(latents[0], latents[-1])
        )
        with self.context.store.reading() as connection:
            rows = connection.execute(query.order_by(table.latent, table.scorer, table.explainer)).all()
        return [(row[0], row[1], row[2], json.loads(row[3])) for row in rows if row[0] in wanted]

    def _seen_by_editors(self) -> dict[str, dict[str, list[str]]]:
        """By source and latent the windows that those who edited labels may have seen: whoever scores these must leave them
        out."""
        store, run_id = self.context.store, self.context.run_id
        found: dict[str, dict[str, list[str]]] = {}
        for source in self.sources:
            edited = sorted({review.latent for review in reviews(store, run_id, source) if review.action == "edit"})
            labels = [label for latent in edited for label in effective_labels(store, run_id, source, [latent])]
            windows = self.context.folder.exemplars(source)
            steered = partial(windows_shown, self.context, source)
            seen = seen_by_editors(store, run_id, source, windows, labels, steered)
            if seen:
                found[source] = {str(latent): list(places) for latent, places in seen.items()}
        return found


def _one_ahead(found: Iterator[Item]) -> Generator[Item, None, None]:
    """The same, the next one made in a thread while one is used: a database's work, compressing and hashing leave Python to others."""
    with ThreadPoolExecutor(1, thread_name_prefix="export-ahead") as thread:
        coming = thread.submit(next, found, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, found, None)
            yield item


def _latents_of(source: str, building: Path, done: Sequence[DonePart]) -> list[int]:
    """The latents of a source that stand in files of the dictionary."""
    import pyarrow.parquet as pq

    found: list[int] = []
    for part in done:
        if source in part.sources:
            with pq.ParquetFile(building / part.file.name) as file:
                named = "source" in file.schema_arrow.names
                table = file.read(columns=["latent", *(["source"] if named else [])])
            latents = table.column("latent").to_pylist()
            if named and len(part.sources) > 1:
                names = table.column("source").to_pylist()
                latents = [n for n, name in zip(latents, names, strict=True) if name == source]
            found += latents
    return found
