"""Addresses and headers of bounded size, and one spelling of a path."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from autointerp.server.guards.base import Guard, refuse

LONGEST_PATH = 2_048
LONGEST_QUERY = 8_192
MOST_HEADERS = 100
LARGEST_HEADERS = 12_288
"""Bytes of all names and values; the transport's own bound on a whole head is above all of these together."""


class HeadSize(Guard):
    """Refuses what is longer than anything this server asks for."""

    async def guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        path = scope["path"]
        if (
            len(scope.get("raw_path") or path.encode("utf-8", "surrogatepass")) > LONGEST_PATH
            or len(scope["query_string"]) > LONGEST_QUERY
        ):
            await refuse(scope, receive, send, 414, "The address is too long: ask for less at once.")
        elif len(headers) > MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > LARGEST_HEADERS:
            await refuse(
                scope, receive, send, 431, "The headers are too long: send fewer, or delete cookies of this site."
            )
        elif any(ord(sign) < 32 or ord(sign) == 127 for sign in path):
            await refuse(scope, receive, send, 400, "The address has a control character in it: follow a link.")
        else:
            await self.app(scope, receive, send)
