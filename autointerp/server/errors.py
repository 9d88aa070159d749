"""Errors as answers: JSON of one shape for the API, a page for browsers; never a traceback, a path, a statement or a secret."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from autointerp.operations.logging import clean
from autointerp.server.pages import page
from autointerp.server.views.base import View
from sae_core.errors import (
    AutointerpError,
    BudgetError,
    DiskFullError,
    EndpointError,
    MissingFileError,
    NonFiniteError,
    StoreError,
    StoreUnavailableError,
    UnknownNameError,
)

_LOG = logging.getLogger(__name__)
_WORDS = {
    400: "This cannot be asked",
    401: "Who are you?",
    403: "Not allowed",
    404: "Not here",
    405: "Not possible here",
    408: "Too slow",
    409: "Not now",
    413: "Too much",
    414: "Too long",
    421: "Not this server",
    422: "This cannot be asked",
    429: "Too many at once",
    431: "Too much",
    500: "Something broke",
    502: "Somebody else does not answer",
    503: "Not ready",
    507: "No room left",
}
LONGEST_DETAIL = 600
"""Characters; a sentence that says back what was sent is cut off."""
_OF_SERVER = re.compile(r"\w[\w+.-]*://[^\s'\"]+|(?<![\w.%-])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"/\\]+[/\\])+[^\s'\",;:)]*")
"""Addresses of stores and endpoints, and paths: where things lie is for the operator alone."""
_SHORT_OF_SERVER = "…"


class Problem(View):
    """Every error of the API."""

    status: int
    """The HTTP status."""
    title: str
    """Its kind, in words."""
    detail: str
    """One sentence: what was given, what is allowed, what to do."""


PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "What was asked cannot be, or not by this token."},
    "5XX": {"model": Problem, "description": "The server, or what it depends on, cannot answer now."},
}
"""What the API's description says of every route."""


class LogInView(View):
    """Who is logged in, or why nobody is."""

    name: str | None
    """Of the token; None where none was shown."""
    scopes: tuple[str, ...]
    go_on: str
    """Where to go afterwards, a path of this server."""
    error: str | None
    is_needed: bool
    """Whether one can log in here: not where the server is open to its machine's user alone."""


def add_error_pages(app: FastAPI) -> None:
    """Answer every error."""

    @app.exception_handler(AutointerpError)
    def of_ours(request: Request, error: AutointerpError) -> Response:
        status, detail = shown_error(error)
        return answer(request, status, detail)

    @app.exception_handler(HTTPException)
    def of_http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 401:
            return log_in_page(request)
        said = (
            error.detail
            if error.detail and error.status_code not in _DETAILS
            else _DETAILS.get(error.status_code, str(error.detail))
        )
        return answer(request, error.status_code, said, error.headers)

    @app.exception_handler(RequestValidationError)
    def of_validation(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])[:100] or "the request"
        return answer(request, 422, f"{where}: {said_of(first)}.")

    @app.exception_handler(Exception)
    def of_anything(request: Request, error: Exception) -> Response:
        # the server goes on; what it was is for its log alone
        _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(request, 500, "The server could not answer this; its log says why.")


def said_of(problem: Mapping[str, Any]) -> str:
    """What is wrong with a field, without a regular expression that nobody can read."""
    if problem["type"] == "string_pattern_mismatch":
        return "it has a sign that it may not have; letters, digits and . _ - are taken, without spaces"
    return str(problem["msg"])[:300].lower()


_DETAILS = {
    404: "There is nothing at this address: follow the links from the first page.",
    405: "This address does not know that method.",
}


def shown_error(error: AutointerpError) -> tuple[int, str]:
    """The status and the sentence for an error of ours. What is about the server's own files and machines goes to its log alone."""
    for kind, status, detail in _OPERATORS:
        if isinstance(error, kind):
            _LOG.warning("%s: %s", type(error).__name__, error)
            return status, detail
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return status, _OF_SERVER.sub(_SHORT_OF_SERVER, str(error))
    return 400, _OF_SERVER.sub(_SHORT_OF_SERVER, str(error))


_OPERATORS: tuple[tuple[type[AutointerpError], int, str], ...] = (
    (StoreUnavailableError, 503, "The store does not answer now: try again in a moment."),
    (DiskFullError, 507, "The server has no room left on its disk: tell whoever runs it."),
    (MissingFileError, 409, "A file of this run is not where it was: tell whoever runs the server."),
)
_STATUSES: tuple[tuple[type[AutointerpError], int], ...] = (
    (UnknownNameError, 404),
    (StoreError, 409),
    (BudgetError, 429),
    (EndpointError, 502),
    (NonFiniteError, 409),
)


def answer(request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """The problem as JSON below ``/api/``, else as a page."""
    # as for a log: it may say back what was sent, with half a character or a sign that turns text round, or what a library said
    problem = Problem(status=status, title=_WORDS.get(status, "Refused"), detail=clean(detail, LONGEST_DETAIL))
    given = dict(headers) if headers else None
    if _is_of_api(request):
        return JSONResponse(problem.model_dump(), status_code=status, headers=given)
    return page(request, "problem.html", problem, status=status, headers=given)


def log_in_page(request: Request, error: str | None = None) -> Response:
    """The answer to somebody whom the server does not know: the page to log in, which leads on to where they wanted to go."""
    headers = {"www-authenticate": "Bearer"}
    if _is_of_api(request):
        return answer(request, 401, "Show a token: `Authorization: Bearer ...`, or log in.", headers)
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    go_on = local_path(wanted) if request.method == "GET" and request.url.path != "/login" else "/"
    view = LogInView(name=None, scopes=(), go_on=go_on, error=error, is_needed=True)
    return page(request, "login.html", view, status=401, headers=headers)


def local_path(given: str) -> str:
    """``given`` where it is a path of this server and can be nothing else to any browser; else the first page."""
    return given if re.fullmatch(r"/(?![/\\])[!-\[\]-~]{0,2000}", given) else "/"


def _is_of_api(request: Request) -> bool:
    path = request.scope["path"]
    return bool(path == "/api" or path.startswith("/api/"))
