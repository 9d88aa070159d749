"""What routes ask for: the shelf as whoever asks sees it, and the run that an address names."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Request

from autointerp.server.access import ThePrincipal
from autointerp.server.progress import Pace
from autointerp.server.shelf import ServedRun
from autointerp.server.subjects import Subjects
from autointerp.server.visibility import SeenShelf


def _shelf(request: Request, principal: ThePrincipal) -> SeenShelf:
    return SeenShelf(request.app.state.shelf, principal)


def _pace(request: Request) -> Pace:
    pace: Pace = request.app.state.pace
    return pace


def _subjects(request: Request) -> Subjects:
    subjects: Subjects = request.app.state.subjects
    return subjects


TheSubjects = Annotated[Subjects, Depends(_subjects)]
TheShelf = Annotated[SeenShelf, Depends(_shelf)]
ThePace = Annotated[Pace, Depends(_pace)]
RunId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,32}$", description="Id of the run.")]
SourceName = Annotated[str, Path(pattern=r"^[^\x00-\x1f\x7f]{1,80}$", description="Name of the source.")]
LatentNumber = Annotated[int, Path(ge=0, le=2**31 - 1, description="Index of the latent in its coder.")]


def _run(run_id: RunId, shelf: TheShelf) -> ServedRun:
    return shelf.run(run_id)


TheRun = Annotated[ServedRun, Depends(_run)]
