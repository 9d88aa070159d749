"""Exports a run's labelled dictionary to a folder; what the ``export`` stage and the ``export`` command share."""

from __future__ import annotations

from pathlib import Path

from autointerp.export import Manifest, dictionary_columns, export_dictionary
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.dictionary_rows import dictionary_rows


def export_run(context: RunContext, folder: Path) -> Manifest:
    """Write the dictionary to ``folder``, whole or not at all. Errors: StoreError, DiskFullError."""
    run = context.store.run(context.run_id)
    judges = tuple(scorer.kind for scorer in context.scorers if scorer.headline == f"{scorer.kind}_score")
    columns = [column.name for column in dictionary_columns(judges)]
    meta = {
        "run_id": run.id,
        "name": run.name,
        "digest": run.digest,
        "config": run.config,
        "code_version": run.code_version,
    }
    return export_dictionary(dictionary_rows(context, columns, run.code_version), folder, meta, scorers=judges)
