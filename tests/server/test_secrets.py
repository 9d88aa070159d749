"""Row 36 of RELIABILITY 5: planted secrets stand in no answer, no log, no file that the server writes."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from autointerp.operations.logging import configure_logs
from autointerp.pipeline.folder import DATABASE, RunFolder
from autointerp.pipeline.starting import open_run
from autointerp.server.app import create_app
from autointerp.server.settings import ServerSettings
from autointerp.store import open_store
from autointerp.store.models import Run
from autointerp.store.opening import sqlite_url
from sae_core.errors import StoreError
from tests.server.asking import SAMPLES, Home, bearer, make_home, served_routes
from tests.server.real_server import RealServer
from tests.server.served_world import RUN_ID
from tests.servers import PostgresServer

KEY = "planted-key-5b1f0e77"
PASSWORD = "planted-password-9c2d41aa"
VARIABLE = "PLANTED_OF_A_TEST"
"""Its name does not tell that it holds a key; only the endpoint says so."""


def plant(run: Path) -> None:
    """An endpoint whose key is in the environment, and a reason to stop that says the store's URL, as it should not."""
    store = open_store(sqlite_url(run / DATABASE))
    with store.writing() as connection:
        config = dict(connection.execute(select(Run.config)).scalar_one())
        config["endpoints"] = [*config["endpoints"], {
            "name": "paid", "kind": "openai", "model": "m", "base_url": "https://llm.invalid/v1",
            "api_key_env": VARIABLE,
        }]  # fmt: skip
        connection.execute(update(Run).values(config=config, state_note=f"cannot reach sqlite://u:{PASSWORD}@h/x"))
    store.close()


@pytest.fixture(scope="module")
def home(served_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    found = make_home(served_run, tmp_path_factory.mktemp("home"))
    plant(found.folder / "mine")
    return found


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the server logs, at the most that it ever does."""
    monkeypatch.setenv(VARIABLE, KEY)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    handler = configure_logs(False, level=logging.DEBUG, stream=stream)
    yield stream
    root.removeHandler(handler)
    root.handlers[:], root.level = before, level


def secrets_of(home: Home) -> list[str]:
    return [KEY, PASSWORD, *home.secrets.values()]


def test_no_answer_and_no_log_has_a_secret_in_it(home: Home, log: io.StringIO) -> None:
    """Every route, asked by all, well and badly; and a route that breaks with all secrets at hand."""
    app = create_app(ServerSettings(home=home.folder))

    @app.get("/api/broken")
    def broken() -> None:
        raise RuntimeError(f"{os.environ[VARIABLE]} postgresql://ann:{PASSWORD}@db/x {home.secrets['ann']}")

    @app.get("/api/refused")
    def refused() -> None:
        raise StoreError(f"the store 'postgresql://ann:{PASSWORD}@db/x' refuses {home.secrets['ann']}")

    said: list[str] = []
    client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False, follow_redirects=False)
    # nothing knows of the key before a run is opened whose endpoint names it
    assert client.get(f"/api/runs/{RUN_ID}", headers=bearer(home.secrets["ann"])).status_code == 200
    for route in served_routes(app):
        for who in ("ann", "root", "past", "gone"):
            for values in (SAMPLES, dict.fromkeys(SAMPLES, "-")):
                if route.method in ("GET", "HEAD"):
                    answers = [client.request(route.method, route.url(values), headers=bearer(home.secrets[who]))]
                else:
                    # not what it is for, which other tests do: a form and a body that do not fit
                    answers = [
                        client.request(
                            route.method,
                            route.url(values),
                            headers=bearer(home.secrets[who]),
                            json={"token": home.secrets[who]},
                        ),
                        client.request(
                            route.method, route.url(values), data={"token": home.secrets[who], "action": "none"}
                        ),
                    ]
                said += [f"{answer.headers}\n{answer.text}" for answer in answers]
    for url in (
        "/api/broken",
        "/api/refused",
        f"/api/runs?{home.secrets['ann']}",
        f"/{home.secrets['ann']}",
        "/api/openapi.json",
    ):
        answer = client.get(url, headers=bearer(home.secrets["ann"]))
        said.append(f"{answer.headers}\n{answer.text}".replace(url, ""))
    assert (
        client.get(f"/api/runs/{RUN_ID}", headers=bearer(home.secrets["ann"])).json()["config"]["endpoints"][-1][
            "api_key_env"
        ]
        == VARIABLE
    )
    assert len(said) > 100
    everything = "\n".join(said)
    for secret in secrets_of(home):
        assert secret not in everything
        assert secret not in log.getvalue()
    assert "RuntimeError" in log.getvalue(), "nothing was logged, so nothing was shown"


def test_a_session_is_no_secret_in_the_store(home: Home) -> None:
    app = create_app(ServerSettings(home=home.folder))
    client = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
    client.post("/login", data={"token": home.secrets["ann"]}, headers={"origin": "http://127.0.0.1"})
    client.get(f"/runs/{RUN_ID}/latents")
    (cookie,) = client.cookies.values()
    kept = {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()}
    assert any(path.name == DATABASE for path in kept)
    for path, data in kept.items():
        for secret in (cookie, *home.secrets.values(), KEY):
            assert secret.encode() not in data, path


def test_an_export_has_no_secret(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autointerp.pipeline.exporting import export_run

    monkeypatch.setenv(VARIABLE, KEY)
    folder = home.folder / "mine"
    context = open_run(open_store(sqlite_url(folder / DATABASE)), RUN_ID, RunFolder(folder).root)
    export_run(context, tmp_path / "dictionary")
    context.store.close()
    for path in (tmp_path / "dictionary").rglob("*"):
        data = path.read_bytes()
        assert not any(secret.encode() in data for secret in secrets_of(home)), path


def test_a_store_that_cannot_be_reached_is_named_without_its_password(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://ann:{PASSWORD}@127.0.0.1:1/x?connect_timeout=1"
    with pytest.raises(StoreError) as raised:
        create_app(ServerSettings(home=tmp_path, store_url=url))
    assert PASSWORD not in str(raised.value)


@pytest.mark.long
def test_a_server_with_a_password_logs_it_nowhere(tmp_path: Path) -> None:
    """A real process on a real PostgreSQL, which is stopped beneath it."""
    with PostgresServer(password=PASSWORD) as postgres:
        url = f"postgresql+psycopg://postgres:{PASSWORD}@127.0.0.1:{postgres.port}/postgres"
        with RealServer(["--home", str(tmp_path)], {"AUTOINTERP_STORE__URL": url, VARIABLE: KEY}) as server:
            said: list[Any] = [server.send("GET /api/runs HTTP/1.1")]
            assert said[0].status == 200
            postgres.stop()
            said += [server.send(f"GET {path} HTTP/1.1") for path in ("/", "/api/runs", "/api/me")]
            assert [answer.status for answer in said[1:]] == [503] * 3
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in (PASSWORD, KEY):
        assert secret not in server.said
        assert secret.encode() not in kept
        assert not any(secret.encode() in answer.body for answer in said)
