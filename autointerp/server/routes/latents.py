"""The table of latents, and a latent's page."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import HTMLResponse

from autointerp.browsing import RowQuery
from autointerp.server.access import Scope, ThePrincipal, require
from autointerp.server.dependencies import LatentNumber, SourceName, TheRun
from autointerp.server.latent_pages import shown_latent
from autointerp.server.pages import page
from autointerp.server.views.dictionary import DictionaryView, dictionary_view, row_query
from autointerp.server.views.latent import LatentView, latent_view

router = APIRouter(tags=["latents"], dependencies=[Depends(require(Scope.READ))])
_MOST_BOUNDS = 8


def _asked(
    source: Annotated[str | None, Query(max_length=80, description="Only latents of this source.")] = None,
    status: Annotated[list[str], Query(max_length=4, description="Only latents of these statuses.")] = [],  # noqa: B006
    where: Annotated[
        list[str], Query(max_length=_MOST_BOUNDS, description="Bounds such as `precision_low>=0.7`; null never fits.")
    ] = [],  # noqa: B006
    words: Annotated[str, Query(max_length=200, description="All of these words stand in the label.")] = "",
    sort: Annotated[str, Query(max_length=80, description="`latent`, or a figure.")] = "latent",
    descending: bool = False,
    limit: Annotated[int, Query(ge=1, le=200, description="Rows of a page.")] = 50,
    after: Annotated[str | None, Query(max_length=60, description="`next` of the page before.")] = None,
) -> RowQuery:
    return row_query(source, status, where, words, sort, descending, limit, after)


Asked = Annotated[RowQuery, Depends(_asked)]


@router.get("/api/runs/{run_id}/latents")
def list_latents(run: TheRun, asked: Asked) -> DictionaryView:
    """A page of the dictionary: any sort, any filter, words of labels."""
    return dictionary_view(run, asked)


@router.get("/runs/{run_id}/latents", response_class=HTMLResponse, include_in_schema=False)
def latents_page(request: Request, run: TheRun, asked: Asked) -> HTMLResponse:
    bounds = [str(bound) for bound in asked.bounds]
    links = [("status", status) for status in asked.statuses] + [("where", bound) for bound in bounds]
    view = dictionary_view(run, asked)
    return page(request, "latents.html", view, asked=asked, asked_bounds=bounds, asked_links=links)


@router.get("/api/runs/{run_id}/latents/{source}/{latent}")
def get_latent(run: TheRun, source: SourceName, latent: LatentNumber) -> LatentView:
    """One latent: label, figures, exemplars, mistakes, history."""
    return latent_view(run, source, latent)


@router.get("/runs/{run_id}/latents/{source}/{latent}", response_class=HTMLResponse, include_in_schema=False)
def latent_page(
    request: Request, principal: ThePrincipal, run: TheRun, source: SourceName, latent: LatentNumber
) -> HTMLResponse:
    return shown_latent(request, principal, latent_view(run, source, latent))
