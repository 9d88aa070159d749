"""The client against the server's own description of its API, and what it says when something is wrong."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

import autointerp
from autointerp.client import Client, NotAllowedError, ServerError
from sae_core.errors import BudgetError, InputError, StoreError, StoreUnavailableError, UnknownNameError
from tests.server.conftest import SIZE
from tests.server.served_world import RUN_ID, SOURCE


@pytest.fixture
def library(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Client:
    """The client, asking an application in this process."""
    found = Client("http://127.0.0.1")
    monkeypatch.setattr(found, "_http", client)
    client.headers["sec-fetch-site"] = "same-origin"
    return found


def methods() -> dict[tuple[str, str], str]:
    """Names of the client's methods by the route that each asks."""
    found = inspect.getmembers(Client, inspect.isfunction)
    return {function.__dict__["route"]: name for name, function in found if "route" in function.__dict__}


def test_every_route_of_the_api_has_a_method_and_every_method_a_route(client: TestClient) -> None:
    paths = client.get("/api/openapi.json").json()["paths"]
    routes = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    assert routes - set(methods()) == set(), "these routes have no method of autointerp.Client"
    assert set(methods()) - routes == set(), "these methods ask what the server does not have"


def test_the_views_are_those_that_the_server_says(library: Client, client: TestClient) -> None:
    """Every GET without further questions, by its method, equals the JSON that a browser gets."""
    known = {"run_id": RUN_ID, "source": SOURCE, "latent": 3, "name": "precision-recall"}
    asked = 0
    for (method, path), name in methods().items():
        wanted = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        if method != "GET" or set(wanted) - set(known) or "dictionary" in path:
            continue
        view = getattr(library, name)(*(known[part] for part in wanted))
        raw = client.get(path.format(**known)).json()
        if isinstance(view, tuple):
            assert [one.model_dump(mode="json") for one in view] == raw[name]
        else:
            assert view.model_dump(mode="json") == raw
        asked += 1
    assert asked >= 10


def test_all_rows_come_page_after_page(library: Client, client: TestClient) -> None:
    rows = list(library.latents(RUN_ID, where=["precision>=0.2"], sort="precision", descending=True))
    assert len(rows) == client.get(f"/api/runs/{RUN_ID}/latents?where=precision>=0.2&limit=1").json()["num_found"] > 200
    assert len({(row.source, row.latent) for row in rows}) == len(rows)
    values = [row.figures["precision"].value for row in rows]
    assert values == sorted(values, key=lambda value: -(value or 0))


def test_a_dictionary_comes_home_whole(library: Client, tmp_path: Path) -> None:
    folder = library.download(RUN_ID, tmp_path / "got")
    assert len(autointerp.load_dictionary(str(folder))) == library.latents_page(RUN_ID).num_rows == SIZE
    assert not list(folder.rglob("*.part"))


def test_errors_are_typed_and_have_the_servers_sentence(library: Client) -> None:
    with pytest.raises(UnknownNameError, match="no such run"):
        library.run("nothing")
    with pytest.raises(InputError, match="precision"):
        list(library.latents(RUN_ID, where=["precisionn>=1"]))
    with pytest.raises(UnknownNameError):
        library.download_file(RUN_ID, "other.parquet", Path("nowhere"))


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InputError), (401, NotAllowedError), (403, NotAllowedError), (409, StoreError), (429, BudgetError),
     (503, StoreUnavailableError), (500, ServerError), (302, ServerError)],
)  # fmt: skip
def test_every_status_has_its_error(status: int, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    found = Client("http://127.0.0.1:9", token="ait_x")
    seen: list[Any] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        headers = {"location": "http://127.0.0.1:10/"} if status == 302 else {}
        return httpx2.Response(status, json={"status": status, "title": "t", "detail": "the sentence"}, headers=headers)

    transport = httpx2.MockTransport(answer)
    monkeypatch.setattr(
        found, "_http", httpx2.Client(base_url="http://127.0.0.1:9", headers=found._http.headers, transport=transport)
    )
    with pytest.raises(kind, match="the sentence"):
        found.me()
    assert seen[0].headers["authorization"] == "Bearer ait_x"
    assert len(seen) == 1, "a redirect is not followed: the token stays here"


def test_what_is_no_autointerp_server_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(ServerError, match="does not answer"):
        nobody.runs()
    other = Client("http://127.0.0.1:9")
    for text, said in (("<html>", "not what this version"), ('{"runs": 3}', "not what this version")):
        transport = httpx2.MockTransport(lambda request, text=text: httpx2.Response(200, text=text))
        monkeypatch.setattr(other, "_http", httpx2.Client(base_url="http://127.0.0.1:9", transport=transport))
        with pytest.raises(ServerError, match=said):
            other.runs()


def test_the_client_loads_no_torch() -> None:
    code = "import autointerp, sys; autointerp.Client('http://127.0.0.1:9'); print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
