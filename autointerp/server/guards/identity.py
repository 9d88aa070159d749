"""Who it is that asks; nobody comes further whom the server does not know."""

from __future__ import annotations

from typing import NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from autointerp.server.access import LOCAL, Principal, remember
from autointerp.server.addresses import host_and_port, is_loopback
from autointerp.server.errors import log_in_page, shown_error
from autointerp.server.guards.base import Guard, refuse
from autointerp.server.sessions import COOKIE, token_of_session
from autointerp.server.settings import ServerSettings
from autointerp.server.tokens import has_tokens, token_of
from autointerp.store import LabelStore
from sae_core.errors import StoreError

BY_TOKEN = "by_token"
"""In a request's state: whether it carries a token that a browser would not send by itself."""
_OPEN = "/login"
_STATIC = "/static/"


class _Known(NamedTuple):
    principal: Principal | None
    by_token: bool
    is_refused: bool
    """It showed a token, and that is none."""


def needs_tokens(settings: ServerSettings) -> bool:
    """Whether everybody has to show one: where others than this machine's user may reach the server, by its address or by a proxy."""
    names = [host_and_port(name) for name in settings.hosts]
    return not is_loopback(settings.host) or any(name is None or not is_loopback(name[0]) for name in names)


class Identity(Guard):
    """Notes down who asks. A token that is shown must be good, whatever else there is: a cookie does not stand in for it."""

    def __init__(self, app: ASGIApp, store: LabelStore, *, always: bool) -> None:
        super().__init__(app)
        self._store, self._always = store, always

    async def guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.startswith(_STATIC):
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        shown = Headers(scope=scope).getlist("authorization")
        try:
            found = await run_in_threadpool(self._known, shown, request.cookies.get(COOKIE))
        except StoreError as error:
            status, detail = shown_error(error)
            await refuse(scope, receive, send, status, detail)
            return
        state = scope.setdefault("state", {})
        state[BY_TOKEN] = found.by_token
        if found.principal is not None:
            remember(state, found.principal)
        if found.is_refused:
            detail = "This token is not known, has run out or was revoked: ask whoever runs the server for another."
            await refuse(scope, receive, send, 401, detail, {"www-authenticate": 'Bearer error="invalid_token"'})
        elif found.principal is None and path != _OPEN:
            await log_in_page(request)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _known(self, shown: list[str], cookie: str | None) -> _Known:
        if shown:
            scheme, _, secret = shown[0].partition(" ")
            token = token_of(self._store, secret.strip()) if len(shown) == 1 and scheme.lower() == "bearer" else None
            return _Known(token.principal if token is not None else None, token is not None, token is None)
        if cookie:
            token = token_of_session(self._store, cookie)
            if token is not None:
                return _Known(token.principal, False, False)
        if self._always or has_tokens(self._store):
            return _Known(None, False, False)
        return _Known(LOCAL, False, False)
