"""Only requests that were meant for this server.

A page elsewhere can give its own name this machine's address once a browser has loaded it (DNS rebinding). What the browser then sends
comes from "the same site" by all other signs; only the name in the Host header is still the page's.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from autointerp.server.addresses import host_and_port, plain_host
from autointerp.server.guards.base import Guard, refuse
from autointerp.server.settings import ServerSettings

_HTTP_PORTS = {"http": 80, "https": 443}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class HostNames(Guard):
    """Lets requests through that name this machine's loopback, the address they came to, or a name that the operator gave."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        super().__init__(app)
        self._given = {host_and_port(name) for name in settings.hosts} - {None}
        self._own = frozenset({plain_host(settings.host)}) - {"0.0.0.0", "::", ""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # nothing here speaks it, and the guards behind this one know HTTP only
            await send({"type": "websocket.close", "code": 1008})
            return
        await super().__call__(scope, receive, send)

    async def guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = Headers(scope=scope).getlist("host")
        asked = host_and_port(named[0]) if len(named) == 1 else None
        if asked is None:
            await refuse(
                scope, receive, send, 400, "A request needs one Host header: the name or address of this server."
            )
        elif self._is_own(scope, *asked):
            await self.app(scope, receive, send)
        else:
            detail = "This server is not known by that name: use its address, or start it with `--name` and the name."
            await refuse(scope, receive, send, 421, detail)

    def _is_own(self, scope: Scope, host: str, port: int | None) -> bool:
        if (host, None) in self._given or (host, port) in self._given:
            return True
        came_to, listens_at = scope.get("server") or (None, None)
        wanted = port if port is not None else _HTTP_PORTS.get(scope["scheme"])
        if listens_at is not None and wanted != listens_at:
            return False
        return host in _LOOPBACK or host in self._own or (came_to is not None and host == plain_host(str(came_to)))
