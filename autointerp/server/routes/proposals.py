"""Asking a run's explainer for another label."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from pydantic import Field
from starlette.responses import HTMLResponse

from autointerp.review.recording import LONGEST_NAME, LONGEST_NOTE, LONGEST_TEXT
from autointerp.server.access import Principal, Scope, require
from autointerp.server.dependencies import LatentNumber, SourceName, TheRun, TheShelf
from autointerp.server.errors import shown_error
from autointerp.server.latent_pages import Given, shown_latent
from autointerp.server.views.base import View
from autointerp.server.views.latent import latent_view
from autointerp.server.views.proposals import ProposalView, proposed
from sae_core.errors import AutointerpError

router = APIRouter(tags=["reviews"])
# it spends what the run may spend, as starting one does
Submitter = Annotated[Principal, Depends(require(Scope.SUBMIT))]


class ProposalRequest(View):
    """Who is asked."""

    explainer: str | None = Field(default=None, min_length=1, max_length=80)
    """Kind of one of the run's explainers; by default the first that asks a language model."""


@router.post("/api/runs/{run_id}/latents/{source}/{latent}/propose")
def propose(
    run: TheRun, shelf: TheShelf, principal: Submitter, source: SourceName, latent: LatentNumber, asked: ProposalRequest
) -> ProposalView:
    """Have a language model write one more label, within the run's budget. Nothing is kept of it but what it cost: a review saves it."""
    return proposed(run, shelf.own, principal, source, latent, asked.explainer)


@router.post("/runs/{run_id}/latents/{source}/{latent}/propose", response_class=HTMLResponse, include_in_schema=False)
def propose_form(
    request: Request,
    run: TheRun,
    shelf: TheShelf,
    principal: Submitter,
    source: SourceName,
    latent: LatentNumber,
    by: Annotated[str, Form(max_length=LONGEST_NAME)] = "",
    text: Annotated[str, Form(max_length=LONGEST_TEXT)] = "",
    note: Annotated[str, Form(max_length=LONGEST_NOTE)] = "",
) -> HTMLResponse:
    view = latent_view(run, source, latent)
    kept = Given(text or None, by, note)
    try:
        found = proposed(run, shelf.own, principal, source, latent, None)
    except AutointerpError as error:
        status, said = shown_error(error)
        return shown_latent(request, principal, view, status=status, error=said, given=kept)
    if found.text is None:
        return shown_latent(request, principal, view, error=found.sentence, given=kept)
    return shown_latent(request, principal, view, suggested=found.sentence, given=kept._replace(text=found.text))
