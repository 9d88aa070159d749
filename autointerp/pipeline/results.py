"""The files that a finished run leaves for people, and how they come back if somebody deletes them. Torch-free."""

from __future__ import annotations

from autointerp.export import MANIFEST_NAME
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.exporting import export_run
from autointerp.pipeline.folder import RunFolder
from autointerp.pipeline.stages.summarise import write_summary


def missing_results(folder: RunFolder) -> list[str]:
    """Names of the results that are not there."""
    places = (folder.dictionary / MANIFEST_NAME, folder.summary, folder.overview)
    return [str(place.relative_to(folder.root)) for place in places if not place.is_file()]


def write_results(context: RunContext) -> None:
    """Write dictionary, summary and picture again, from the store. Errors: StoreError, DiskFullError."""
    export_run(context, context.folder.dictionary)
    write_summary(context)
