"""What people say of labels."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Form, Request
from pydantic import Field
from starlette.responses import RedirectResponse, Response

from autointerp.review.recording import LONGEST_NAME, LONGEST_NOTE, LONGEST_TEXT
from autointerp.server.access import Principal, Scope, require
from autointerp.server.dependencies import LatentNumber, SourceName, TheRun
from autointerp.server.errors import shown_error
from autointerp.server.latent_pages import Given, shown_latent, signature
from autointerp.server.shelf import ServedRun
from autointerp.server.views.base import View
from autointerp.server.views.latent import latent_view
from autointerp.server.views.reviews import ReviewedView, reviewed
from sae_core.errors import AutointerpError, InputError

router = APIRouter(tags=["reviews"])
Reviewer = Annotated[Principal, Depends(require(Scope.REVIEW))]


class ReviewRequest(View):
    """A person's word on a label."""

    action: Literal["accept", "reject", "edit"]
    text: str | None = Field(default=None, max_length=LONGEST_TEXT)
    """The better label of an edit; only an edit has one."""
    by: str | None = Field(default=None, min_length=1, max_length=LONGEST_NAME)
    """Who says so. Of a request with a token it is the token's name, whatever stands here."""
    note: str | None = Field(default=None, max_length=LONGEST_NOTE)


@router.post("/api/runs/{run_id}/latents/{source}/{latent}/review")
def review(
    run: TheRun, principal: Reviewer, source: SourceName, latent: LatentNumber, said: ReviewRequest
) -> ReviewedView:
    """Accept, reject or edit a label; an edit is scored by the run's judges on windows that nobody has been shown."""
    by = signature(principal) or said.by
    if by is None:
        raise InputError("a review is somebody's: say who you are with `by`.")
    return reviewed(run, source, latent, said.action, said.text, by, said.note)


def _check_unchanged(run: ServedRun, source: str, latent: int, text: str) -> None:
    """Raise InputError where somebody typed a text and then accepts the one that stands."""
    label = latent_view(run, source, latent).label
    if label is not None and " ".join(text.split()) != " ".join(label.split()):
        raise InputError("the text was changed: save it, or write the label as it was to accept that.")


@router.post("/runs/{run_id}/latents/{source}/{latent}/review", include_in_schema=False)
def review_form(
    request: Request,
    run: TheRun,
    principal: Reviewer,
    source: SourceName,
    latent: LatentNumber,
    action: Annotated[Literal["accept", "reject", "edit"], Form()],
    by: Annotated[str, Form(max_length=LONGEST_NAME)] = "",
    text: Annotated[str, Form(max_length=LONGEST_TEXT)] = "",
    note: Annotated[str, Form(max_length=LONGEST_NOTE)] = "",
) -> Response:
    signed = signature(principal) or by
    try:
        if action == "accept" and text.strip():
            _check_unchanged(run, source, latent, text)
        reviewed(run, source, latent, action, text if action == "edit" else None, signed, note or None)
    except AutointerpError as error:
        status, problem = shown_error(error)
        view = latent_view(run, source, latent)
        given = Given(text, by, note)
        return shown_latent(request, principal, view, status=status, error=problem, given=given)
    return RedirectResponse(request.url.path.removesuffix("/review"), status_code=303)
