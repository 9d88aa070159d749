"""What stands between the transport and the routes, from the outside in.

::

    SecureHeaders    headers on every answer, errors among them, that keep a browser from obeying hostile text
    HostNames        only requests that were meant for this server: no rebound name, and HTTP alone
    HeadSize         addresses and headers of bounded size
    Crowds           a bounded number of requests at a time from one address
    Identity         who it is: a token, a browser that has shown one, the user of this machine; nobody else comes further
    Crowds           a bounded number of requests at a time with one token
    Origins          nothing is changed by a request that another site had a browser send
    Bodies           a body of bounded size, time and depth

Scopes are asked for by each route (autointerp.server.access.require); that a route forgets to ask opens it to nobody without a token.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from autointerp.server.guards.bodies import Bodies
from autointerp.server.guards.crowds import Crowds, address_of, token_name_of
from autointerp.server.guards.head_size import HeadSize
from autointerp.server.guards.headers import CONTENT_SECURITY_POLICY, SecureHeaders
from autointerp.server.guards.host_names import HostNames
from autointerp.server.guards.identity import Identity, needs_tokens
from autointerp.server.guards.origins import Origins

__all__ = ["CONTENT_SECURITY_POLICY", "GuardedAPI", "needs_tokens"]
MOST_OF_ADDRESS = 256
"""Requests at a time from one address, behind which many people may be."""
MOST_OF_TOKEN = 64
"""Requests at a time with one token."""


class GuardedAPI(FastAPI):
    """An application behind the guards. ``state`` has the settings and the shelf before the first request."""

    def build_middleware_stack(self) -> ASGIApp:
        # around everything, so that the answer to a request that broke the application goes through them too
        return guarded(super().build_middleware_stack(), self.state)


def guarded(app: ASGIApp, state: Any) -> ASGIApp:
    """The application with the guards around it."""
    settings, store = state.settings, state.shelf.own
    app = Bodies(app, settings.max_body_bytes)
    app = Origins(app)
    app = Crowds(app, token_name_of, MOST_OF_TOKEN)
    app = Identity(app, store, always=needs_tokens(settings))
    app = Crowds(app, address_of, MOST_OF_ADDRESS)
    app = HeadSize(app)
    app = HostNames(app, settings)
    return SecureHeaders(app)
