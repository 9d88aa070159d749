"""Errors as answers: JSON of one shape for the API, a page for browsers; never a traceback."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from autointerp.server.pages import page
from autointerp.server.views.base import View
from sae_core.errors import AutointerpError, StoreError, UnknownNameError

_LOG = logging.getLogger(__name__)
_WORDS = {
    400: "This cannot be asked",
    401: "Who are you?",
    403: "Not allowed",
    404: "Not here",
    405: "Not possible here",
    409: "Not now",
    413: "Too much",
    422: "This cannot be asked",
    429: "Too many at once",
    500: "Something broke",
    503: "Not ready",
}


class Problem(View):
    """Every error of the API."""

    status: int
    """The HTTP status."""
    title: str
    """Its kind, in words."""
    detail: str
    """One sentence: what was given, what is allowed, what to do."""


def add_error_pages(app: FastAPI) -> None:
    """Answer every error."""

    @app.exception_handler(AutointerpError)
    def of_ours(request: Request, error: AutointerpError) -> Response:
        status = 404 if isinstance(error, UnknownNameError) else 409 if isinstance(error, StoreError) else 400
        return answer(request, status, str(error))

    @app.exception_handler(HTTPException)
    def of_http(request: Request, error: HTTPException) -> Response:
        said = (
            error.detail
            if error.detail and error.status_code not in (404, 405)
            else _DETAILS.get(error.status_code, str(error.detail))
        )
        return answer(request, error.status_code, said, error.headers)

    @app.exception_handler(RequestValidationError)
    def of_validation(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return answer(request, 422, f"{where}: {str(first['msg']).lower()}.")

    @app.exception_handler(Exception)
    def of_anything(request: Request, error: Exception) -> Response:
        # the server goes on; what it was is for its log alone
        _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(request, 500, "The server could not answer this; its log says why.")


_DETAILS = {
    404: "There is nothing at this address: follow the links from the first page.",
    405: "This address does not know that method.",
}


def answer(request: Request, status: int, detail: str, headers: object = None) -> Response:
    """The problem as JSON below ``/api/``, else as a page."""
    problem = Problem(status=status, title=_WORDS.get(status, "Refused"), detail=detail)
    given = dict(headers) if isinstance(headers, dict) else None
    if request.url.path.startswith("/api/"):
        return JSONResponse(problem.model_dump(), status_code=status, headers=given)
    return page(request, "problem.html", problem, status=status, headers=given)
