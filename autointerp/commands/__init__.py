"""The command line's commands, a module a topic: each ``register``s its own on the application."""

from __future__ import annotations

import typer

from autointerp.commands import bench, catalogue, cluster, exporting, nightly, operations, searching, serving, tokens


def register_all(app: typer.Typer) -> None:
    """Add every topic's commands."""
    for topic in (cluster, bench, operations, nightly, exporting, serving, catalogue, searching, tokens):
        topic.register(app)
