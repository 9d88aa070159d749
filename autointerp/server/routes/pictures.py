"""Pictures of a dictionary, as numbers and as drawings in which every latent is a link."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import HTMLResponse

from autointerp.server.access import Scope, require
from autointerp.server.dependencies import TheRun
from autointerp.server.drawing import drawing
from autointerp.server.pages import page
from autointerp.server.views.pictures import PictureView, picture_view

router = APIRouter(tags=["pictures"], dependencies=[Depends(require(Scope.READ))])
Name = Annotated[str, Path(pattern="^[a-z0-9-]{1,40}$", description="Name of the picture.")]


@router.get("/api/runs/{run_id}/pictures/{name}")
def get_picture(run: TheRun, name: Name) -> PictureView:
    """Two figures of every latent, with floors."""
    return picture_view(run, name)


@router.get("/runs/{run_id}/pictures/{name}", response_class=HTMLResponse, include_in_schema=False)
def picture_part(request: Request, run: TheRun, name: Name) -> HTMLResponse:
    view = picture_view(run, name)
    return page(request, "parts/picture.html", view, drawing=drawing(view) if view.num_latents else None)
