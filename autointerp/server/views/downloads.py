"""What can be taken home of a run."""

from __future__ import annotations

from pathlib import Path

from autointerp.export.manifest import MANIFEST_NAME
from autointerp.server.shelf import ServedRun
from autointerp.server.views.base import View
from autointerp.server.views.dictionary import num_reviewed
from autointerp.server.views.jobs import JobView, job_view
from autointerp.store.models import JobRow
from sae_core.errors import UnknownNameError


class FileView(View):
    """One file."""

    name: str
    rows: int | None
    """Of parquet files."""
    bytes: int
    sha256: str | None


class DownloadsView(View):
    """The labelled dictionary as files, and what it is of."""

    run_id: str
    files: tuple[FileView, ...]
    """The manifest first; empty before a dictionary was made."""
    num_rows: int
    made_at: str | None
    num_reviewed: int
    """Labels that people have spoken of since: a new export has their word."""
    ended: bool
    export: JobView | None
    """The export that was asked for last; None where none was."""


def downloads_view(run: ServedRun, export: JobRow | None = None) -> DownloadsView:
    """The files of the latest export, and how far the next one is."""
    asked = None if export is None else job_view(export)
    manifest, folder = run.manifest(), run.dictionary()
    ended = run.store.run_state(run.run_id) in ("done", "failed", "cancelled")
    if manifest is None or folder is None:
        return DownloadsView(
            run_id=run.run_id, files=(), num_rows=0, made_at=None, num_reviewed=0, ended=ended, export=asked
        )
    files = [FileView(name=MANIFEST_NAME, rows=None, bytes=(folder / MANIFEST_NAME).stat().st_size, sha256=None)]
    files += [FileView(name=part.name, rows=part.rows, bytes=part.bytes, sha256=part.sha256) for part in manifest.files]
    return DownloadsView(
        run_id=run.run_id,
        files=tuple(files),
        num_rows=manifest.num_rows,
        made_at=manifest.created_at,
        num_reviewed=num_reviewed(run, manifest.created_at),
        ended=ended,
        export=asked,
    )


def downloaded(run: ServedRun, name: str) -> Path:
    """Where a file of the latest export lies: only what its manifest names. Errors: UnknownNameError."""
    folder = run.dictionary()
    if folder is not None and name in [one.name for one in downloads_view(run).files]:
        path = folder / name
        if path.resolve().is_relative_to(folder.resolve()) and path.is_file():
            return path
    raise UnknownNameError("the dictionary has no such file: its page lists those there are.")
