"""What tests of access share: the routes that there are, a home with a run of somebody's, and everybody's tokens."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from sqlalchemy import update

from autointerp.export.manifest import MANIFEST_NAME
from autointerp.pipeline.folder import DATABASE
from autointerp.server.access import Scope, scope_of
from autointerp.server.tokens import add_token, revoke_token
from autointerp.store import LabelStore, open_store
from autointerp.store.column_types import utc_now
from autointerp.store.models import Run, TokenRow
from autointerp.store.opening import sqlite_url
from tests.server.served_world import RUN_ID, SOURCE

OPEN = {("GET", "/login"), ("POST", "/login")}
"""Routes for those whom the server does not know."""
ANY_SCOPE = OPEN | {("POST", "/logout"), ("GET", "/api/me")}
"""Routes that ask for no scope."""
EVERYTHING = tuple(scope for scope in Scope if scope is not Scope.ADMIN)
SAMPLES = {"run_id": RUN_ID, "source": SOURCE, "latent": "5", "job_id": "0" * 32}
"""A value of every path parameter; ``name`` is by the address before it."""
NAMES = {"pictures": "f1-rate", "dictionary": MANIFEST_NAME}


class ServedRoute(NamedTuple):
    """One method of one route."""

    method: str
    path: str
    """With the names of its parameters in braces."""
    scopes: frozenset[Scope]

    def url(self, values: Mapping[str, str] = SAMPLES) -> str:
        """An address of it. A parameter without a sample is a KeyError: give it one above."""

        def value(match: re.Match[str]) -> str:
            name = match[1].partition(":")[0]
            if name in values:
                return values[name]
            return NAMES[self.path[: match.start()].rstrip("/").rpartition("/")[2]]

        return re.sub(r"\{([^}]+)\}", value, self.path)


def served_routes(app: FastAPI) -> list[ServedRoute]:
    """Every method of every route, but for static files."""
    found = []
    for route in _api_routes(app):
        scopes = frozenset(_scopes(route.dependant))
        found += [ServedRoute(method, route.path, scopes) for method in sorted(route.methods)]
    return sorted(found)


def _api_routes(app: FastAPI) -> Iterator[APIRoute]:
    left: list[Any] = list(app.routes)
    while left:
        route = left.pop()
        if isinstance(route, APIRoute):
            yield route
        # some versions of FastAPI keep the routes of a router apart
        left += getattr(getattr(route, "original_router", None), "routes", [])


def _scopes(dependant: Dependant) -> Iterator[Scope]:
    scope = scope_of(dependant.call)
    if scope is not None:
        yield scope
    for one in dependant.dependencies:
        yield from _scopes(one)


class Home(NamedTuple):
    """A home with one run, and the secrets of its tokens by their names."""

    folder: Path
    secrets: dict[str, str]

    def store(self) -> LabelStore:
        """The server's store."""
        return open_store(sqlite_url(self.folder / DATABASE))


def make_home(run: Path, folder: Path, owner: str | None = "ann") -> Home:
    """A home with a copy of a run that belongs to ``owner``.

    Tokens: ann and bob with all scopes but admin, root with admin, past (expired), gone (revoked), and without-SCOPE for each scope.
    """
    place = folder / "mine"
    shutil.copytree(run, place)
    with open_store(sqlite_url(place / DATABASE)).writing() as connection:
        connection.execute(update(Run).values(owner=owner))
    home = Home(folder, {})
    store = home.store()
    wanted: dict[str, tuple[Scope, ...]] = {
        "ann": EVERYTHING, "bob": EVERYTHING, "root": (Scope.ADMIN,), "past": EVERYTHING, "gone": EVERYTHING,
    }  # fmt: skip
    wanted |= {f"without-{scope}": tuple(one for one in EVERYTHING if one is not scope) for scope in EVERYTHING}
    for name, scopes in wanted.items():
        home.secrets[name] = add_token(store, name, scopes)
    revoke_token(store, "gone")
    with store.writing() as connection:
        before = utc_now() - timedelta(seconds=1)
        connection.execute(update(TokenRow).where(TokenRow.name == "past").values(expires_at=before))
    store.close()
    return home


def digest_of_tree(folder: Path) -> dict[str, str]:
    """sha256 of every file by its path; of SQLite's files beside a database only that they hold nothing."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"-> {path.readlink()}"
        elif path.is_file() and not path.name.endswith("-shm"):
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def bearer(secret: str) -> dict[str, str]:
    """The header that shows a token."""
    return {"Authorization": f"Bearer {secret}"}  # spelled so that schemathesis can leave it out
