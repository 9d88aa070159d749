"""Search by text and contrast through pages and the API: a real child process with a real subject, on the planted world."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fastapi.testclient import TestClient

from autointerp.server.app import create_app
from autointerp.server.settings import ServerSettings
from tests import planted_world
from tests.autointerp.test_passages import CONFIG, passages

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
SAME_SITE = {"sec-fetch-site": "same-origin"}
DEF = 5
"""The planted latent that fires on ``def``."""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, str]]:
    """A browser, and the run's path below /runs or /api/runs."""
    world = tmp_path_factory.mktemp("world")
    planted_world.build(world, num_documents=80)
    (world / "run.toml").write_text(CONFIG)
    command = [
        sys.executable,
        "-m",
        "autointerp.cli",
        "run",
        str(world / "run.toml"),
        "--out",
        str(world / "runs" / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    with TestClient(create_app(ServerSettings(home=world / "runs")), base_url="http://127.0.0.1") as client:
        run_id = client.get("/api/runs").json()["runs"][0]["run_id"]
        yield client, f"/runs/{run_id}/search"
    left = [child.name() for child in psutil.Process().children() if "autointerp.passages" in " ".join(child.cmdline())]
    assert left == []  # the server ends its subjects


def test_a_passage_shows_what_fires_on_it(asked: tuple[TestClient, str]) -> None:
    client, path = asked
    answer = client.post(f"/api{path}/text", json={"texts": ["w1 w2 def w3"]}, headers=SAME_SITE)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    latent = next(one for one in found["latents"] if one["latent"] == DEF)
    (firing,) = latent["firing"]
    assert [found["passages"][0]["tokens"][place] for place in firing["tokens"]] == ["def"]
    page = client.post(f"{path}/text", data={"text": "w1 w2 def w3"}, headers=SAME_SITE)
    (group,) = re.findall(rf'<section class="group found">\s*<h2><a href="[^"]*/{DEF}">.*?</section>', page.text, re.S)
    assert re.findall(r"<mark[^>]*>([^<]*)</mark>", group) == ["def"]


def test_sets_of_passages_are_told_apart(asked: tuple[TestClient, str]) -> None:
    client, path = asked
    sets = {"with_concept": passages(15, "def", 0), "without_concept": passages(12, None, 1)}
    found = client.post(
        f"/api{path}/contrast", json={name: list(texts) for name, texts in sets.items()}, headers=SAME_SITE
    )
    first = found.json()["latents"][0]
    assert (first["latent"], first["auroc"]) == (DEF, 1.0)
    assert first["q"] < 0.05
    page = client.post(
        f"{path}/contrast", data={name: "\r\n".join(texts) for name, texts in sets.items()}, headers=SAME_SITE
    )
    assert re.search(r'class="row-link" href="[^"]*/(\d+)"', page.text)[1] == str(DEF)  # type: ignore[index]
    assert "15 passages with it against 12 without" in page.text


def test_what_cannot_be_searched_is_one_sentence(asked: tuple[TestClient, str]) -> None:
    client, path = asked
    for body, says in (({"texts": []}, "give 1 to 64"), ({"texts": ["x"], "source": "plantet"}, "did you mean")):
        answer = client.post(f"/api{path}/text", json=body, headers=SAME_SITE)
        assert answer.status_code in (400, 404)
        assert says in answer.json()["detail"]
    page = client.post(f"{path}/contrast", data={"with_concept": "w1", "without_concept": "w2"}, headers=SAME_SITE)
    assert page.status_code == 400
    assert "give 2 to 400" in page.text
    assert ">w1</textarea>" in page.text  # what was typed is not lost
