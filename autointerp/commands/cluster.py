"""Commands of runs that workers do: submit, pause, resume, cancel, retry-failed."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
