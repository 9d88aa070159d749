"""Search by meaning through the API, pages and the client: from nothing read to an answer, with a model that hashes words in a real child."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from fastapi.testclient import TestClient

from autointerp import sentence_embedding
from autointerp.client import Client
from autointerp.export.filters import RowFilter
from autointerp.pipeline.exporting import ExportOptions, export_run
from autointerp.server.app import create_app
from autointerp.server.meanings import Meanings
from autointerp.server.settings import ServerSettings
from sae_core.errors import StoreError, UnknownNameError
from tests.autointerp.export_world import open_world
from tests.hash_embedder import COMMAND, HashEmbedder
from tests.server.browser import CONTRAST, Watched, open_browser
from tests.server.real_server import served_in_thread
from tests.server.served_world import RUN_ID, SOURCE

PAGE = f"/runs/{RUN_ID}/search"
API = f"/api{PAGE}"
SAME_SITE = {"sec-fetch-site": "same-origin"}


def serving(home: Path, command: Sequence[str] = COMMAND) -> TestClient:
    app = create_app(ServerSettings(home=home))
    app.state.meanings = Meanings(command)
    return TestClient(app, base_url="http://127.0.0.1")


@pytest.fixture
def home(served_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(served_run, tmp_path / "runs" / "own")
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def ready(served_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A browser before a run whose labels have been read."""
    place = tmp_path_factory.mktemp("runs")
    shutil.copytree(served_run, place / "own")
    with serving(place) as client:
        assert read_all(client)["state"] == "ready"
        yield client
    left = [child for child in psutil.Process().children() if "hash_embedder" in " ".join(child.cmdline())]
    assert left == []  # the server ends its processes


def state(client: TestClient) -> dict[str, Any]:
    answer = client.get(API)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["meaning"]
    return found


def read_all(client: TestClient) -> dict[str, Any]:
    """Have the labels read and wait for the end of it."""
    said = client.post(f"{API}/meaning", headers=SAME_SITE)
    assert said.status_code == 200, said.text
    for _ in range(300):
        found = state(client)
        if found["state"] != "making":
            return found
        time.sleep(0.1)
    raise AssertionError(found)


def by_hand(served_run: Path, words: str, **wanted: Any) -> pd.DataFrame:
    """The rows with a label, the nearest first, row by row."""
    table = pd.read_parquet(served_run / "dictionary")
    table = table[table.label.notna()]
    vector = HashEmbedder().embed([words])[0]
    table["cosine"] = [float(HashEmbedder().embed([label])[0] @ vector) for label in table.label]
    for name, least in wanted.items():
        table = table[table[name] >= least]
    return table.sort_values(["cosine", "latent"], ascending=[False, True])


def test_from_nothing_to_an_answer(home: Path, served_run: Path) -> None:
    with serving(home) as client:
        assert state(client) == {"state": "absent", "num_labels": 0, "done": 0, "total": 0, "why": None}
        early = client.get(f"{API}/meaning", params={"words": "a colon"})
        assert early.status_code == 409
        assert "have not been read" in early.json()["detail"]
        assert "Read the labels" in client.get(PAGE).text
        answer = client.post(f"{PAGE}/meaning", headers=SAME_SITE, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, PAGE)
        done = read_all(client)  # asked twice, it is made once
        assert done["state"] == "ready"
        assert done["num_labels"] == len(by_hand(served_run, "x"))
        assert f"{done['num_labels']} labels." in client.get(PAGE).text
    with serving(home) as client:  # another server finds it there
        assert state(client) == done
        assert client.get(f"{API}/meaning", params={"words": "a colon"}).status_code == 200


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("the word number 45, also", {}), ("a colon", {"precision_low": 0.4}), ("number", {"f1": 0.9})],
)
def test_answers_are_those_of_a_plain_search(
    ready: TestClient, served_run: Path, words: str, wanted: dict[str, float]
) -> None:
    where = [f"{name}>={least}" for name, least in wanted.items()]
    found = ready.get(f"{API}/meaning", params={"words": words, "where": where}).json()
    expected = by_hand(served_run, words, **wanted)
    rows = found["rows"]
    assert len(rows) == min(50, len(expected)) > 3
    exact = expected.set_index("latent")
    cosines = [row["cosine"] for row in rows]
    assert cosines == sorted(cosines, reverse=True)
    np.testing.assert_allclose(cosines, expected.cosine[:50], atol=0.01)
    for row in rows:
        of = exact.loc[row["latent"]]
        assert (row["label"], row["source"], row["status"]) == (of.label, SOURCE, "labelled")
        assert row["cosine"] == pytest.approx(of.cosine, abs=0.01)
        values = [row["figures"]["precision"]["value"], row["figures"]["f1"]["low"]]
        np.testing.assert_array_equal(np.array(values, float), np.array([of.precision, of.f1_low], float))
    assert found["shown"] == ["precision", "recall", "f1"]


def test_the_page_has_the_rows_of_its_twin(ready: TestClient) -> None:
    twin = ready.get(f"{API}/meaning", params={"words": "number 45", "limit": 7}).json()
    shown = ready.get(f"{PAGE}/meaning", params={"words": "number 45", "limit": 7, "where": "fire_rate>=0"})
    assert shown.status_code == 200
    latents = re.findall(r'class="row-link" href="[^"]*/(\d+)"', shown.text)
    assert [int(latent) for latent in latents] == [row["latent"] for row in twin["rows"]]
    assert len(latents) == 7
    for kept in ("number 45", "7", "fire_rate&gt;=0"):  # the next search from this page asks among the same rows
        assert f'value="{kept}"' in shown.text
    assert ready.get(f"{PAGE}/meaning").status_code == 200
    assert ready.get(f"{API}/meaning").json()["rows"] == []
    hostile = ready.get(f"{PAGE}/meaning", params={"words": "<script>alert(1)</script>"}).text
    assert "<script>alert" not in hostile


def test_what_cannot_be_asked_is_one_sentence(ready: TestClient) -> None:
    for params, status, says in (
        ({"words": "x", "source": "othr"}, 404, "no source"),
        ({"words": "x", "where": "f2>=1"}, 404, "f2"),
        ({"words": "x", "where": "nothing"}, 400, "no bound"),
        ({"words": "x" * 501}, 422, "500"),
        ({"words": "x", "limit": 51}, 422, "50"),
    ):
        answer = ready.get(f"{API}/meaning", params=params)
        assert answer.status_code == status, answer.text
        assert says in answer.json()["detail"]
    assert ready.get(f"{API}/meaning", params={"words": "x", "status": "dead"}).json()["rows"] == []


def test_the_client_asks_the_same(ready: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Client("http://127.0.0.1")
    monkeypatch.setattr(library, "_http", ready)
    monkeypatch.setitem(ready.headers, "sec-fetch-site", "same-origin")
    assert library.make_meanings(RUN_ID).state == "ready"
    found = library.search_meaning(RUN_ID, "number 45", where=["f1>=0"], limit=3)
    raw = ready.get(f"{API}/meaning", params={"words": "number 45", "where": "f1>=0", "limit": 3}).json()
    assert found.model_dump(mode="json") == raw
    assert library.search(RUN_ID).meaning == found.meaning
    with pytest.raises(UnknownNameError):
        library.search_meaning(RUN_ID, "x", source="other")


def test_reviews_since_the_export_are_seen(home: Path) -> None:
    with serving(home) as client:
        read_all(client)
        words = {"words": "the word number 45, also after a colon"}
        first, other = [row["latent"] for row in client.get(f"{API}/meaning", params=words).json()["rows"][:2]]
        assert first == 45
        for latent, said in ((45, {"action": "reject"}), (other, {"action": "edit", "text": "an edited word"})):
            url = f"/api/runs/{RUN_ID}/latents/{SOURCE}/{latent}/review"
            answer = client.post(url, json={**said, "by": "ann"}, headers=SAME_SITE)
            assert answer.status_code == 200, answer.text
        rows = {row["latent"]: row for row in client.get(f"{API}/meaning", params=words).json()["rows"]}
        assert (rows[45]["status"], rows[45]["label"], rows[45]["reviewed"]) == ("failed", None, "rejected by ann")
        assert rows[45]["cosine"] > 0.99  # of the label as it was
        assert (rows[other]["label"], rows[other]["reviewed"]) == ("an edited word", "edited by ann")
        assert "rejected by ann" in client.get(f"{PAGE}/meaning", params=words).text


def test_a_new_dictionary_has_its_labels_read_anew(home: Path) -> None:
    with serving(home) as client:
        first = read_all(client)
        time.sleep(0.01)
        context = open_world(home / "own")
        few = ExportOptions(filter=RowFilter.of((), (), ("latent<100",)))
        export_run(context, home / "own" / "dictionary", few)
        context.store.close()
        assert state(client)["state"] == "absent"
        assert client.get(f"{API}/meaning", params={"words": "word"}).status_code == 409
        second = read_all(client)
        assert 0 < second["num_labels"] < first["num_labels"]
        rows = client.get(f"{API}/meaning", params={"words": "word number"}).json()["rows"]
        assert max(row["latent"] for row in rows) < 100


def test_how_far_it_is_is_said_and_a_server_that_ends_loses_nothing(home: Path) -> None:
    with serving(home, (*COMMAND, "slow")) as client:
        client.post(f"{API}/meaning", headers=SAME_SITE)
        deadline = time.monotonic() + 60
        while not (found := state(client))["done"]:
            assert found["state"] == "making"
            assert time.monotonic() < deadline
        assert 0 < found["done"] < found["total"]
        assert f"{found['done']} of {found['total']} labels" in client.get(PAGE).text
        assert 'data-live="/runs/' in client.get(PAGE).text
        busy = client.get(f"{API}/meaning", params={"words": "word"})
        assert busy.status_code == 409
        assert "being read" in busy.json()["detail"]
        began = time.monotonic()
    assert time.monotonic() - began < 10
    with serving(home) as client:
        assert state(client)["state"] == "absent"
        assert read_all(client)["state"] == "ready"
    kept = list((home / ".server" / RUN_ID / "meanings").glob("*/entries.bin"))
    assert len(kept) == 1
    hashes = np.fromfile(kept[0], np.dtype([("hash", "<u8"), ("scale", "<f4")]))["hash"]
    assert len(set(hashes.tolist())) == len(hashes) == found["total"], "no label was read twice"


def test_a_model_that_fails_is_said_and_can_be_asked_again(home: Path) -> None:
    with serving(home, (*COMMAND, "crashes")) as client:
        for _ in range(2):
            found = read_all(client)
            assert found["state"] == "absent"
            assert "the wires melted" in found["why"]
            assert "the wires melted" in client.get(PAGE).text
    with serving(home, (*COMMAND, "refuses")) as client:
        assert "the model is none" in read_all(client)["why"]


def test_without_the_extra_it_is_said_how_to_get_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_embedding, "find_spec", lambda name: None)
    with TestClient(create_app(ServerSettings(home=home)), base_url="http://127.0.0.1") as client:
        found = state(client)
        assert found["state"] == "unavailable"
        assert "pip install 'autointerp[embed]'" in found["why"]
        assert "pip install &#39;autointerp[embed]&#39;" in client.get(PAGE).text
        for answer in (
            client.post(f"{API}/meaning", headers=SAME_SITE),
            client.get(f"{API}/meaning", params={"words": "word"}),
        ):
            assert answer.status_code == 409
            assert answer.json()["detail"] == found["why"]


def test_a_run_without_a_dictionary_has_nothing_to_read(home: Path) -> None:
    shutil.rmtree(home / "own" / "dictionary")
    with serving(home) as client:
        assert state(client)["state"] == "unavailable"
        assert "no dictionary yet" in state(client)["why"]
        answer = client.post(f"{API}/meaning", headers=SAME_SITE)
        assert answer.status_code == 409
        assert client.get(f"{API}/meaning", params={"words": "word"}).status_code == 409
        assert client.get(f"{PAGE}/meaning").status_code == 200


def test_runs_wait_for_each_other(home: Path) -> None:
    """One maker at a time; closing with one waiting ends at once."""
    meanings = Meanings((*COMMAND, "slow"))
    with TestClient(create_app(ServerSettings(home=home)), base_url="http://127.0.0.1") as client:
        run = client.app.state.shelf.run(RUN_ID)  # type: ignore[attr-defined]

        class Other:
            run_id, state_folder = "other-1", home / ".server" / "other-1"

            def dictionary(self) -> Path | None:
                return run.dictionary()  # type: ignore[no-any-return]

        assert meanings.make(run).state == "making"
        assert meanings.make(Other()).state == "making"  # type: ignore[arg-type]
        while not meanings.state(run).done:
            time.sleep(0.05)
        assert meanings.state(Other()).total == 0  # type: ignore[arg-type]
        began = time.monotonic()
        meanings.close()
        assert time.monotonic() - began < 10
        with pytest.raises(StoreError, match="about to end"):
            meanings.make(run)


@pytest.mark.long
def test_a_reader_has_labels_read_and_finds_them_in_the_browser(home: Path) -> None:
    """The button, the progress that turns into the form without a reload by hand, the table; at both widths, light and dark."""
    app = create_app(ServerSettings(home=home))
    app.state.meanings = Meanings((*COMMAND, "slow"))
    with served_in_thread(app) as port, open_browser() as browser:
        watched = Watched(browser, f"http://127.0.0.1:{port}")
        page = watched.go(PAGE)
        page.get_by_role("button", name="Read the labels").click()
        page.locator(".state-running").wait_for()  # and the page turns by itself into the one with the form
        page.get_by_label("Meaning").fill("the word number 45, also after a colon")
        page.get_by_label("Meaning").press("Enter")
        page.wait_for_url("**/search/meaning?**")
        assert page.locator("tbody tr").count() == 50
        assert page.locator("tbody tr").first.locator("td").first.inner_text() == "45"
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/latents/{SOURCE}/45")
        watched.close()
        for width, scheme in ((1280, "light"), (390, "dark")):
            watched = Watched(
                browser, f"http://127.0.0.1:{port}", viewport={"width": width, "height": 850}, color_scheme=scheme
            )
            for path in (PAGE, f"{PAGE}/meaning?words=number", f"{PAGE}/meaning"):
                page = watched.go(path)
                assert watched.sideways() <= 0, path
                assert page.evaluate(CONTRAST) == [], path
            watched.close()
