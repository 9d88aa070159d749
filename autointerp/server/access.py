"""Who asks, and what they may do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException


class Scope(StrEnum):
    """What a token allows."""

    READ = "read"
    """Look at everything that is its own, or everybody's."""
    REVIEW = "review"
    """Say what a person thinks of labels."""
    SUBMIT = "submit"
    """Start runs, and search on the subject."""
    CANCEL = "cancel"
    """Pause, go on with, cancel and retry runs."""
    EXPORT = "export"
    """Have dictionaries, and indices of meanings, made."""
    ADMIN = "admin"
    """All of it, and other people's runs."""


class Principal(NamedTuple):
    """Whoever sent a request."""

    name: str
    scopes: frozenset[Scope]
    token_id: str | None
    """Name of its token, under which its runs are kept; None for the user of this machine, who needs none."""

    def allows(self, scope: Scope) -> bool:
        """Whether it may do this."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def sees(self, owner: str | None) -> bool:
        """Whether it may know of a run; an owner that is None is everybody."""
        return owner is None or owner == self.token_id or Scope.ADMIN in self.scopes


LOCAL = Principal("local", frozenset(Scope), None)
"""The user of this machine, where the server listens to nobody else and no token was ever added."""
_STATE = "principal"
_SCOPES: dict[Callable[..., Any], Scope] = {}
_BEARER = HTTPBearer(auto_error=False, description="A token of `autointerp token add`.")


def remember(state: dict[str, Any], principal: Principal) -> None:
    """Note down in a request's state who sent it."""
    state[_STATE] = principal


def principal_of(request: Request) -> Principal | None:
    """Who sent it; None before anybody has been asked, as on the page where one logs in."""
    return getattr(request.state, _STATE, None)


async def _principal(request: Request, _documented: Annotated[Any, Security(_BEARER)]) -> Principal:
    found = principal_of(request)
    if found is None:
        raise HTTPException(401, "Show a token: `Authorization: Bearer ...`, or log in.")
    return found


ThePrincipal = Annotated[Principal, Depends(_principal)]


@cache
def require(scope: Scope) -> Callable[..., Awaitable[Principal]]:
    """A dependency that lets in only whoever may do this, and says who it is."""

    async def allowed(principal: ThePrincipal) -> Principal:
        if not principal.allows(scope):
            raise HTTPException(403, f"This token lacks the scope {scope.value!r}: ask whoever runs the server for it.")
        return principal

    _SCOPES[allowed] = scope
    return allowed


def scope_of(dependency: Callable[..., Any] | None) -> Scope | None:
    """The scope that a dependency asks for; None for one that asks for none."""
    return _SCOPES.get(dependency) if dependency is not None else None
