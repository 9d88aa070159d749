"""A bounded number of requests at a time, so that one asker does not take all the places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from autointerp.server.access import principal_of
from autointerp.server.guards.base import Guard, refuse


class Crowds(Guard):
    """Counts requests under way by what ``known_by`` says of them; None is not counted."""

    def __init__(self, app: ASGIApp, known_by: Callable[[Scope], str | None], most: int) -> None:
        super().__init__(app)
        self._known_by, self._most = known_by, most
        # one event loop serves: nothing is locked
        self._under_way: Counter[str] = Counter()

    async def guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        known = self._known_by(scope)
        if known is None:
            await self.app(scope, receive, send)
            return
        if self._under_way[known] >= self._most:
            detail = f"{self._most} requests are under way already: wait for some of them."
            await refuse(scope, receive, send, 429, detail, {"retry-after": "1"})
            return
        self._under_way[known] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._under_way[known] -= 1
            if not self._under_way[known]:
                del self._under_way[known]


def address_of(scope: Scope) -> str | None:
    """The address that a request came from."""
    client = scope.get("client")
    return str(client[0]) if client else None


def token_name_of(scope: Scope) -> str | None:
    """The name of its token, None for a request without one."""
    principal = principal_of(Request(scope))
    return principal.token_id if principal is not None else None
