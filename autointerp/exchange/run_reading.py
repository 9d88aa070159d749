"""What formats read of a run: its sources, and their rows some thousand at a time. Controls are no sources of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from autointerp.export import RowFilter, dictionary_schema
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.dictionary_pages import PAGE, SourceReading, pages
from autointerp.pipeline.dictionary_rows import judge_kinds
from autointerp.pipeline.dictionary_table import PageTables
from autointerp.store import LabelStore
from autointerp.store.models import Run
from sae_core.records import Source

_COLUMNS = (
    "latent",
    "status",
    "label",
    "label_output",
    "explainer",
    "explainer_model",
    "fire_rate",
    "precision",
    "precision_low",
    "precision_high",
    "precision_method",
    "recall",
    "recall_low",
    "recall_high",
    "f1",
    "causal_effect",
    "created_at",
)
"""What is written of a row."""
Row = dict[str, Any]


@dataclass
class RunReading:
    """A run in one state of its store."""

    context: RunContext
    wanted: RowFilter
    """Which latents are written."""
    run: Run
    sources: list[Source]
    """Those that are wanted, in the run's order."""
    _tables: PageTables
    _filter_columns: list[str]
    _current: SourceReading | None = field(default=None, repr=False)

    @classmethod
    def of(cls, context: RunContext, store: LabelStore, wanted: RowFilter) -> RunReading:
        """The run as ``store`` has it. Errors: UnknownNameError, InputError for a filter's names."""
        schema = dictionary_schema(judge_kinds(context))
        real = [source for source in context.sources if not source.control]
        wanted.check(schema, [source.name for source in real])
        sources = [source for source in real if not wanted.sources or source.name in wanted.sources]
        reading = replace(context, store=store)
        bounded = ["source", "status", *(bound.column for bound in wanted.bounds)]
        return cls(reading, wanted, store.run(context.run_id), sources, PageTables(schema), bounded)

    def source(self, name: str) -> SourceReading:
        """What is read once a source; the last one is kept."""
        if self._current is None or self._current.source.name != name:
            self._current = SourceReading.of(self.context, self.context.source(name), self.run.code_version)
        return self._current

    def rows(self, source: str, latents: range) -> Iterator[Row]:
        """The wanted rows of latents between the first and the last one of ``latents``, ascending."""
        for page in pages(self.source(source), latents.start - 1, min(PAGE, max(len(latents), 1))):
            table = self.wanted.rows(
                self._tables.of(page).select(list(dict.fromkeys([*_COLUMNS, *self._filter_columns])))
            )
            for row in table.to_pylist():
                if row["latent"] >= latents.stop:
                    return
                yield row
            if page.labels[-1].latent >= latents.stop - 1:
                return

    def batches(self, source: Source, size: int) -> Iterator[tuple[int, range]]:
        """Number and latents of each batch of ``size`` in which the run has labelled some: batch n holds latents from n times size on."""
        chosen = self.context.latents(source.name)
        last = -1
        for latent in chosen:
            if latent // size > last:
                last = latent // size
                yield last, range(last * size, min((last + 1) * size, source.num_latents))

    @property
    def began_at(self) -> str:
        """When the run began, as other tools write times."""
        return iso_time(self.run.created_at)


def iso_time(time: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and a Z."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def label_texts(row: Row) -> tuple[str | None, str | None]:
    """The labels of a row: of what the latent fires on, and of what it does. What has failed, or is blank, is None."""
    said = (row["label"] if row["status"] == "labelled" else None, row["label_output"])
    texts = [text if isinstance(text, str) and text.strip() else None for text in said]
    return texts[0], texts[1]
