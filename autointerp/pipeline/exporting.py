"""Exports a run's labelled dictionary to a folder; what the ``export`` stage and the ``export`` command share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autointerp.export import Manifest, dictionary_columns, export_dictionary
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.dictionary_rows import dictionary_rows, judge_kinds
from autointerp.review.effective import effective_labels
from autointerp.review.seen import seen_by_editors


def export_run(context: RunContext, folder: Path) -> Manifest:
    """Write the dictionary to ``folder``, whole or not at all. Errors: StoreError, DiskFullError."""
    run = context.store.run(context.run_id)
    judges = judge_kinds(context)
    columns = [column.name for column in dictionary_columns(judges)]
    meta: dict[str, Any] = {
        "run_id": run.id,
        "name": run.name,
        "digest": run.digest,
        "config": run.config,
        "code_version": run.code_version,
    }
    if seen := _seen_by_editors(context):
        meta["seen"] = seen
    return export_dictionary(dictionary_rows(context, columns, run.code_version), folder, meta, scorers=judges)


def _seen_by_editors(context: RunContext) -> dict[str, dict[str, list[str]]]:
    """By source and latent the windows that those who edited labels may have seen: whoever scores these must leave them out."""
    found: dict[str, dict[str, list[str]]] = {}
    for source in context.sources:
        if source.control:
            continue
        labels = effective_labels(context.store, context.run_id, source.name)
        windows = context.folder.exemplars(source.name)
        seen = seen_by_editors(context.store, context.run_id, source.name, windows, labels)
        if seen:
            found[source.name] = {str(latent): list(places) for latent, places in seen.items()}
    return found
