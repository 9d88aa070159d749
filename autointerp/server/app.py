"""Puts the service together: routes found by scanning their package, guards around them, errors as one sentence."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles

from autointerp.server import routes
from autointerp.server.errors import PROBLEMS, add_error_pages
from autointerp.server.guards import GuardedAPI
from autointerp.server.progress import Pace
from autointerp.server.settings import ServerSettings
from autointerp.server.shelf import Shelf
from autointerp.server.subjects import Subjects

_HERE = Path(__file__).parent


def create_app(settings: ServerSettings) -> FastAPI:
    """The application. Errors: StoreError where its store cannot be opened."""
    from autointerp.pipeline.code_version import code_version

    shelf, subjects = Shelf(settings), Subjects()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        subjects.close()
        shelf.close()

    app = GuardedAPI(
        title="autointerp",
        description="Labels for the latents of sparse coders, and how far each label can be trusted.",
        version=code_version(),
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/openapi.json",
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.settings, app.state.shelf, app.state.pace = settings, shelf, Pace()
    app.state.subjects = subjects
    for found in sorted(pkgutil.iter_modules(routes.__path__), key=lambda module: module.name):
        module = importlib.import_module(f"{routes.__name__}.{found.name}")
        if hasattr(module, "router"):
            app.include_router(module.router, responses=PROBLEMS)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    add_error_pages(app)
    app.add_middleware(GZipMiddleware, minimum_size=2048, compresslevel=4)
    return app
