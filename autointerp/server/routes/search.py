"""Search by text and by contrast: the subject and the coder run on what somebody pastes, in a process beside the server."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import HTMLResponse

from autointerp.passages import ContrastAnswer, ContrastQuestion, SubjectProcessError, TextAnswer, TextQuestion
from autointerp.passages.questions import MOST_CHARACTERS
from autointerp.server.access import Scope, require
from autointerp.server.dependencies import TheRun, TheSubjects
from autointerp.server.errors import shown_error
from autointerp.server.meanings import TheMeanings
from autointerp.server.pages import page
from autointerp.server.views.search import ContrastView, SearchView, search_view, text_search_view
from sae_core.errors import InputError

router = APIRouter(tags=["search"])
_TOP = 20
_MOST_FORM = 400_000
"""Characters of a form's field."""
_BAD = (InputError, SubjectProcessError)


def _lines(text: str) -> str:
    """A form's text with the line ends that were typed: browsers send every one as CR LF."""
    return text.replace("\r\n", "\n")


@router.get("/api/runs/{run_id}/search", dependencies=[Depends(require(Scope.READ))])
def get_search(run: TheRun, meanings: TheMeanings) -> SearchView:
    """What can be searched in a run."""
    return search_view(run, meanings.state(run))


@router.get(
    "/runs/{run_id}/search",
    dependencies=[Depends(require(Scope.READ))],
    response_class=HTMLResponse,
    include_in_schema=False,
)
def search_page(request: Request, run: TheRun, meanings: TheMeanings) -> HTMLResponse:
    return page(request, "search.html", search_view(run, meanings.state(run)), error=None, given={})


@router.post("/api/runs/{run_id}/search/text", dependencies=[Depends(require(Scope.SUBMIT))])
def search_text(run: TheRun, subjects: TheSubjects, question: TextQuestion) -> TextAnswer:
    """Which latents fire on these passages, and at which tokens."""
    return subjects.ask(run, question)


@router.post(
    "/runs/{run_id}/search/text",
    dependencies=[Depends(require(Scope.SUBMIT))],
    response_class=HTMLResponse,
    include_in_schema=False,
)
def search_text_form(
    request: Request,
    run: TheRun,
    subjects: TheSubjects,
    meanings: TheMeanings,
    text: Annotated[str, Form(max_length=MOST_CHARACTERS)] = "",
    source: Annotated[str, Form(max_length=80)] = "",
) -> HTMLResponse:
    try:
        answer = subjects.ask(run, TextQuestion(source=source or None, top=_TOP, texts=(_lines(text),)))
    except _BAD as error:
        given = {"text": text, "source": source}
        view = search_view(run, meanings.state(run))
        return page(request, "search.html", view, status=400, error=shown_error(error)[1], given=given)
    return page(request, "found.html", text_search_view(run.run_id, answer), text=text)


@router.post("/api/runs/{run_id}/search/contrast", dependencies=[Depends(require(Scope.SUBMIT))])
def search_contrast(run: TheRun, subjects: TheSubjects, question: ContrastQuestion) -> ContrastAnswer:
    """Which latents tell passages with a concept from those without it."""
    return subjects.ask(run, question)


@router.post(
    "/runs/{run_id}/search/contrast",
    dependencies=[Depends(require(Scope.SUBMIT))],
    response_class=HTMLResponse,
    include_in_schema=False,
)
def search_contrast_form(
    request: Request,
    run: TheRun,
    subjects: TheSubjects,
    meanings: TheMeanings,
    with_concept: Annotated[str, Form(max_length=_MOST_FORM)] = "",
    without_concept: Annotated[str, Form(max_length=_MOST_FORM)] = "",
    source: Annotated[str, Form(max_length=80)] = "",
) -> HTMLResponse:
    sets = [tuple(line for line in text.splitlines() if line.strip()) for text in (with_concept, without_concept)]
    try:
        question = ContrastQuestion(source=source or None, top=50, with_concept=sets[0], without_concept=sets[1])
        answer = subjects.ask(run, question)
    except _BAD as error:
        given = {"with_concept": with_concept, "without_concept": without_concept, "source": source}
        view = search_view(run, meanings.state(run))
        return page(request, "search.html", view, status=400, error=shown_error(error)[1], given=given)
    return page(request, "contrast.html", ContrastView(run_id=run.run_id, answer=answer))
