"""Search by meaning: labels that mean the like of some words, once they have been read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from autointerp.browsing import RowQuery
from autointerp.server.access import Scope, require
from autointerp.server.dependencies import TheRun
from autointerp.server.meanings import MeaningState, TheMeanings, meanings_of
from autointerp.server.pages import page
from autointerp.server.views.meaning import MOST_FOUND, MeaningSearchView, meaning_query, meaning_search_view

_MOST_WORDS = 500
"""Characters; a label is shorter."""


@asynccontextmanager
async def _at_work(app: FastAPI) -> AsyncIterator[None]:
    """Processes end with the server."""
    meanings = meanings_of(app)
    yield
    meanings.close()


router = APIRouter(tags=["search"], lifespan=_at_work)


def _asked(
    source: Annotated[str | None, Query(max_length=80, description="Only latents of this source.")] = None,
    status: Annotated[list[str], Query(max_length=4, description="Only latents of these statuses.")] = [],  # noqa: B006
    where: Annotated[list[str], Query(max_length=8, description="Bounds such as `precision_low>=0.7`.")] = [],  # noqa: B006
) -> RowQuery:
    return meaning_query(source, status, where)


Asked = Annotated[RowQuery, Depends(_asked)]
Words = Annotated[str, Query(max_length=_MOST_WORDS, description="What labels are to mean; empty for the state alone.")]
Limit = Annotated[int, Query(ge=1, le=MOST_FOUND, description="Rows of the answer.")]


@router.get("/api/runs/{run_id}/search/meaning", dependencies=[Depends(require(Scope.READ))])
def search_meaning(
    run: TheRun, meanings: TheMeanings, asked: Asked, words: Words = "", limit: Limit = MOST_FOUND
) -> MeaningSearchView:
    """Which latents' labels mean the like of some words, the nearest first."""
    return meaning_search_view(run, meanings, words, asked, limit)


@router.get(
    "/runs/{run_id}/search/meaning",
    dependencies=[Depends(require(Scope.READ))],
    response_class=HTMLResponse,
    include_in_schema=False,
)
def meaning_page(
    request: Request, run: TheRun, meanings: TheMeanings, asked: Asked, words: Words = "", limit: Limit = MOST_FOUND
) -> HTMLResponse:
    view = meaning_search_view(run, meanings, words, asked, limit)
    return page(request, "meaning.html", view, asked=asked, limit=limit)


@router.post("/api/runs/{run_id}/search/meaning", dependencies=[Depends(require(Scope.EXPORT))])
def make_meanings(run: TheRun, meanings: TheMeanings) -> MeaningState:
    """Have the labels of the latest dictionary read for search by meaning; what was read before is not read again."""
    return meanings.make(run)


@router.post("/runs/{run_id}/search/meaning", dependencies=[Depends(require(Scope.EXPORT))], include_in_schema=False)
def make_meanings_form(run: TheRun, meanings: TheMeanings) -> Response:
    meanings.make(run)
    return RedirectResponse(f"/runs/{run.run_id}/search", status_code=303)
