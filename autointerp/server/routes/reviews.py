"""What people say of labels."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Form, Request
from pydantic import Field
from starlette.responses import RedirectResponse, Response

from autointerp.review.recording import LONGEST_NAME, LONGEST_NOTE, LONGEST_TEXT
from autointerp.server.access import Scope, require
from autointerp.server.dependencies import LatentNumber, SourceName, TheRun
from autointerp.server.pages import page
from autointerp.server.views.base import View
from autointerp.server.views.latent import latent_view
from autointerp.server.views.reviews import ReviewedView, reviewed
from sae_core.errors import InputError

router = APIRouter(tags=["reviews"], dependencies=[Depends(require(Scope.REVIEW))])


class ReviewRequest(View):
    """A person's word on a label."""

    action: Literal["accept", "reject", "edit"]
    text: str | None = Field(default=None, max_length=LONGEST_TEXT)
    """The better label of an edit; only an edit has one."""
    by: str = Field(min_length=1, max_length=LONGEST_NAME)
    note: str | None = Field(default=None, max_length=LONGEST_NOTE)


@router.post("/api/runs/{run_id}/latents/{source}/{latent}/review")
def review(run: TheRun, source: SourceName, latent: LatentNumber, said: ReviewRequest) -> ReviewedView:
    """Accept, reject or edit a label; an edit is scored by the run's judges on windows that nobody has been shown."""
    return reviewed(run, source, latent, said.action, said.text, said.by, said.note)


@router.post("/runs/{run_id}/latents/{source}/{latent}/review", include_in_schema=False)
def review_form(
    request: Request,
    run: TheRun,
    source: SourceName,
    latent: LatentNumber,
    action: Annotated[Literal["accept", "reject", "edit"], Form()],
    by: Annotated[str, Form(max_length=LONGEST_NAME)] = "",
    text: Annotated[str, Form(max_length=LONGEST_TEXT)] = "",
    note: Annotated[str, Form(max_length=LONGEST_NOTE)] = "",
) -> Response:
    try:
        reviewed(run, source, latent, action, text if action == "edit" else None, by, note or None)
    except InputError as error:
        view = latent_view(run, source, latent)
        return page(request, "latent.html", view, status=400, review_error=str(error))
    return RedirectResponse(request.url.path.removesuffix("/review"), status_code=303)
