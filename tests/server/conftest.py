"""A run that is served, and who asks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from autointerp.server.app import create_app
from autointerp.server.settings import ServerSettings
from tests.server.served_world import make_served

SIZE = 400


@pytest.fixture(scope="session")
def served_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of :data:`SIZE` latents. Nobody changes it."""
    return make_served(tmp_path_factory.mktemp("served"), SIZE)


@pytest.fixture(scope="module")
def client(served_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A browser on this machine that looks at the run."""
    settings = ServerSettings(home=tmp_path_factory.mktemp("home"), runs=(served_run,))
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as found:
        yield found


@pytest.fixture
def own_client(served_run: Path, tmp_path: Path) -> Iterator[TestClient]:
    """The same with a copy of the run that the test may change."""
    own = shutil.copytree(served_run, tmp_path / "runs" / "own")
    with TestClient(create_app(ServerSettings(home=own.parent)), base_url="http://127.0.0.1") as found:
        yield found
