"""``autointerp serve``: the browser pages and the HTTP API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from autointerp.server.settings import DEFAULT_PORT


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def serve(
        runs: Annotated[
            list[Path] | None,
            typer.Argument(metavar="[RUN]...", help="Output folders to show beside those below --home."),
        ] = None,
        home: Annotated[
            Path,
            typer.Option(
                help="Folder of the server's own store and of the runs that it starts; runs below it are shown."
            ),
        ] = Path("runs"),
        host: Annotated[
            str, typer.Option(help="Address to listen at; any but a loopback one asks everybody for a token.")
        ] = "127.0.0.1",
        port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = DEFAULT_PORT,
        name: Annotated[
            list[str] | None,
            typer.Option("--name", help="A name by which browsers call this server, a proxy's say; once for each."),
        ] = None,
    ) -> None:
        """Show runs in the browser, and serve the HTTP API."""
        from autointerp.server.serving import serve_forever
        from autointerp.server.settings import ServerSettings

        serve_forever(
            ServerSettings(
                home=home,
                runs=tuple(runs or ()),
                store_url=os.environ.get("AUTOINTERP_STORE__URL") or None,
                host=host,
                port=port,
                hosts=tuple(name or ()),
            )
        )
