"""Logging in with a token, and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from autointerp.server.access import Scope, ThePrincipal, principal_of
from autointerp.server.errors import LogInView, local_path, log_in_page
from autointerp.server.pages import page
from autointerp.server.sessions import COOKIE, LASTS, begin_session, end_session
from autointerp.server.tokens import LONGEST_SECRET, token_of
from autointerp.server.views.base import View
from autointerp.store import LabelStore

router = APIRouter(tags=["access"])


def _store(request: Request) -> LabelStore:
    # of nobody yet: the shelf is somebody's
    store: LabelStore = request.app.state.shelf.own
    return store


TheStore = Annotated[LabelStore, Depends(_store)]


class Me(View):
    """Whoever asks."""

    name: str
    """Of the token; `local` for the user of this machine."""
    scopes: tuple[Scope, ...]
    needs_token: bool
    """Whether a token was asked for."""


@router.get("/api/me")
def me(principal: ThePrincipal) -> Me:
    """Who the server takes you for, and what you may do."""
    return Me(name=principal.name, scopes=tuple(sorted(principal.scopes)), needs_token=principal.token_id is not None)


@router.get("/login", response_class=HTMLResponse, include_in_schema=False)
def login_page(request: Request, go_on: Annotated[str, Query(max_length=2_001)] = "/") -> Response:
    principal = principal_of(request)
    view = LogInView(
        name=principal.name if principal else None,
        scopes=tuple(sorted(principal.scopes)) if principal else (),
        go_on=local_path(go_on),
        error=None,
        is_needed=principal is None or principal.token_id is not None,
    )
    return page(request, "login.html", view)


@router.post("/login", include_in_schema=False)
def login(
    request: Request,
    store: TheStore,
    token: Annotated[str, Form(max_length=LONGEST_SECRET)] = "",
    go_on: Annotated[str, Form(max_length=2_001)] = "/",
) -> Response:
    found = token_of(store, token.strip())
    if found is None:
        return log_in_page(request, "This token is not known, has run out or was revoked.")
    answer = RedirectResponse(local_path(go_on), status_code=303)
    answer.set_cookie(
        COOKIE,
        begin_session(store, found),
        max_age=int(LASTS.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.post("/logout", include_in_schema=False)
def logout(request: Request, store: TheStore) -> Response:
    cookie = request.cookies.get(COOKIE)
    if cookie:
        end_session(store, cookie)
    answer = RedirectResponse("/login", status_code=303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer
