"""What routes ask for: the shelf, the run that an address names."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Request

from autointerp.server.progress import Pace
from autointerp.server.shelf import ServedRun, Shelf


def _shelf(request: Request) -> Shelf:
    shelf: Shelf = request.app.state.shelf
    return shelf


def _pace(request: Request) -> Pace:
    pace: Pace = request.app.state.pace
    return pace


TheShelf = Annotated[Shelf, Depends(_shelf)]
ThePace = Annotated[Pace, Depends(_pace)]
RunId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,32}$", description="Id of the run.")]
SourceName = Annotated[str, Path(max_length=80, description="Name of the source.")]
LatentNumber = Annotated[int, Path(ge=0, le=2**31 - 1, description="Index of the latent in its coder.")]


def _run(run_id: RunId, shelf: TheShelf) -> ServedRun:
    return shelf.run(run_id)


TheRun = Annotated[ServedRun, Depends(_run)]
