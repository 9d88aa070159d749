"""Nothing is changed by a request that another site had a browser send (cross-site request forgery).

A browser says itself where a request comes from: ``Sec-Fetch-Site`` on every request to an address that it holds to be safe, ``Origin`` on every
one that is not GET or HEAD. A token in a header is something that a browser never adds by itself, so whoever shows a good one and no cookie is no browser.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from autointerp.server.addresses import host_and_port
from autointerp.server.guards.base import Guard, refuse
from autointerp.server.guards.identity import BY_TOKEN

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""
_OWN = frozenset({"same-origin", "none"})
_DETAIL = (
    "This changes something, and does not come from a page of this server: use its pages, or send a token as `Authorization: Bearer ...`, "
    "or, where no token is needed, the header `Sec-Fetch-Site: same-origin`."
)


class Origins(Guard):
    """Refuses what changes something and does not come from a page of this server, or from no page at all."""

    async def guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        is_program = scope.get("state", {}).get(BY_TOKEN, False) and "cookie" not in headers
        if scope["method"] in SAFE or is_program or _is_own(headers, scope):
            await self.app(scope, receive, send)
        else:
            await refuse(scope, receive, send, 403, _DETAIL)


def _is_own(headers: Headers, scope: Scope) -> bool:
    site = headers.getlist("sec-fetch-site")
    if site:
        return all(one in _OWN for one in site)
    origins = headers.getlist("origin")
    if len(origins) != 1:
        return False
    scheme, found, rest = origins[0].partition("://")
    if not found or scheme not in ("http", "https"):
        return False
    origin, host = host_and_port(rest), host_and_port(headers.get("host", ""))
    if origin is None or host is None:
        return False
    # a proxy that ends TLS hands on the name, not the scheme: a port left out is that of either's own scheme
    default = 443 if scheme == "https" else 80
    return origin[0] == host[0] and (origin[1] or default) == (host[1] or default)
