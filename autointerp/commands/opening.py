"""What commands share: the console they print to, and the run that was named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from autointerp.pipeline.context import RunContext


def open_console(*, stderr: bool = False) -> Console:
    """A console without colouring by guesswork."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def open_context(given: str, store: str | None) -> RunContext:
    """A context to read the run that ``given`` names: an output folder, a run id or the beginning of one. Errors: StoreError."""
    from autointerp.pipeline.finding import find_run
    from autointerp.pipeline.starting import open_run

    found, run_id = find_run(given, store)
    return open_run(found, run_id, Path(given) if Path(given).is_dir() else None)
