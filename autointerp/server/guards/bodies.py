"""A body of bounded size, time and depth, whatever its headers say of it.

FastAPI counts bodies too, but only from a later version on than the oldest that is allowed here, and neither bounds time nor depth.
"""

from __future__ import annotations

import asyncio
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autointerp.server.guards.base import Guard, refuse

BODY_S = 20.0
"""Seconds within which a body must have come, all of it."""
DEEPEST = 64
"""Levels of arrays and objects in JSON."""
_CLOSE = {"connection": "close"}
_PARTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
"""Strings, whole or cut off, and brackets outside them; possessive, so that no text takes more than one pass."""


class _GoneError(Exception):
    """Whoever asked does not wait for an answer."""


class Bodies(Guard):
    """Reads the body before a route does, and counts what really comes."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        super().__init__(app)
        self._limit = limit_bytes

    async def guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        said = Headers(scope=scope).get("content-length", "")
        try:
            async with asyncio.timeout(BODY_S):
                is_said_large = said.isdecimal() and int(said[:20]) > self._limit
                body = None if is_said_large else await self._read(receive)
        except TimeoutError:
            detail = f"The body did not come within {BODY_S:.0f} seconds: send it at once."
            await refuse(scope, receive, send, 408, detail, _CLOSE)
            return
        except _GoneError:
            return
        if body is None:
            detail = f"A body may have {self._limit:,} bytes: send less at once."
            await refuse(scope, receive, send, 413, detail, _CLOSE)
            return
        if is_deep(body):
            detail = f"JSON may be {DEEPEST} levels deep: send plainer values."
            await refuse(scope, receive, send, 400, detail)
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, None for one that is larger than it may be."""
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limit:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)


def is_deep(body: bytes) -> bool:
    """Whether a body nests brackets deeper than :data:`DEEPEST`, whatever type it is said to be of."""
    if body.count(b"[") + body.count(b"{") <= DEEPEST:
        return False
    depth = 0
    for found in _PARTS.finditer(body):
        sign = found[0]
        if sign in (b"[", b"{"):
            depth += 1
            if depth > DEEPEST:
                return True
        elif sign in (b"]", b"}"):
            depth -= 1
    return False
