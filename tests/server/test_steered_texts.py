"""What steering writes: the page against a file written by hand, and which windows whoever reads it has seen."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from autointerp.pipeline.folder import RunFolder
from autointerp.review.shown_steering import windows_shown
from autointerp.server.app import create_app
from autointerp.server.settings import ServerSettings
from sae_core.exemplar_store import ExemplarStore
from sae_core.intervention.text_evidence import CLEAN, SteeredTexts, TextState
from sae_core.records import Side
from tests.autointerp.export_world import open_world
from tests.made_up_world import WINDOW
from tests.server.served_world import RUN_ID, SOURCE

LATENT, OTHER, UNREACHED = 150, 160, 170
CHUNK = 1
"""Of 128 latents: all three are in the second."""
HOSTILE = "</p><script>alert(1)</script>\u202e\n\tend"
HOSTILE_TOKEN = 77
NUM_PROMPTS, LONG, LENGTH = 6, 43, 8
RUN = f"/runs/{RUN_ID}/latents/{SOURCE}"


def texts(instructions: list[str], targets: tuple[float, ...]) -> SteeredTexts:
    """For each prompt a clean text, one steered at each target and two of another latent; token ids say which one it is."""
    rows: list[tuple[int, int, int, float, float, list[int]]] = []
    prompts: list[list[int]] = []
    for latent in (LATENT, OTHER):
        for _ in range(NUM_PROMPTS):
            number = len(prompts)
            prompts.append([0, *(1 + (13 * number + at) % 2000 for at in range(LONG - 1 if number % 2 else 9))])
            rows.append((latent, number, CLEAN, np.nan, 0.0, token_ids(number, 0)))
            for at, target in enumerate(reversed(targets)):  # the strongest first: pages put them in order
                rows.append((latent, number, latent, target, 3 * target, token_ids(number, 1 + at)))
                control = (OTHER if latent == LATENT else LATENT) + at
                rows.append((latent, number, control, target, 5 * target, token_ids(number, 11 + at)))
    rows[0][5][2] = HOSTILE_TOKEN
    if len(targets) > 1:
        rows[3][5][:] = [5] * LENGTH  # the same again and again
    rows[1][5][4:] = [-1] * 4  # it ended
    width = np.array([row[5] for row in rows], np.int32)
    lengths = [len(prompt) for prompt in prompts]
    return SteeredTexts(
        latents=np.array([LATENT, OTHER, UNREACHED], np.int32),
        state=np.array([TextState.TEXTS, TextState.TEXTS, TextState.UNREACHABLE], np.uint8),
        prompt_context=np.array([-1 if instructions else 30 + n for n in range(len(prompts))], np.int32),
        prompt_start=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_tokens=np.concatenate(prompts).astype(np.int32),
        latent=np.array([row[0] for row in rows], np.int32),
        prompt=np.array([row[1] for row in rows], np.int32),
        steered=np.array([row[2] for row in rows], np.int32),
        target=np.array([row[3] for row in rows], np.float64),
        alpha=np.array([row[4] for row in rows], np.float64),
        tokens=width,
        logprob_own=np.full(width.shape, -2.0, np.float32),
        logprob_clean=np.full(width.shape, -3.0, np.float32),
        instructions=instructions,
        temperature=1.0,
    )


def token_ids(prompt: int, which: int) -> list[int]:
    """What one text says."""
    return [1 + (100 * which + 7 * prompt + at) % 2000 for at in range(LENGTH)]


CONTINUED = texts([], (0.5,))
ANSWERED = texts([f"Say {n}: {HOSTILE}" for n in range(2 * NUM_PROMPTS)], (0.5, 2.0))


@pytest.fixture(scope="module")
def folder(served_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with texts, and a token that is a script."""
    own = shutil.copytree(served_run, tmp_path_factory.mktemp("steered") / "runs" / "own")
    where = RunFolder(own)
    for kind, table in (("steered_texts", CONTINUED), ("steered_answers", ANSWERED)):
        table.save(where.evidence(SOURCE, kind, CHUNK))
    path = where.exemplars(SOURCE) / "tokenizer.json"
    layout = json.loads(path.read_text())
    vocabulary = layout["model"]["vocab"]
    word = next(name for name, number in vocabulary.items() if number == HOSTILE_TOKEN)
    del vocabulary[word]
    vocabulary["▁" + HOSTILE] = HOSTILE_TOKEN
    path.write_text(json.dumps(layout))
    return own


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(create_app(ServerSettings(home=folder.parent)), base_url="http://127.0.0.1") as found:
        yield found


@pytest.fixture(scope="module")
def words(folder: Path) -> list[str]:
    """[vocabulary] each token's word, from the file."""
    vocabulary = json.loads((RunFolder(folder).exemplars(SOURCE) / "tokenizer.json").read_text())["model"]["vocab"]
    found = [""] * (max(vocabulary.values()) + 1)
    for word, number in vocabulary.items():
        found[number] = word.replace("▁", " ")
    return found


def visible(ids: list[int], words: list[str]) -> str:
    """Words with what is hostile in them as it is to be seen."""
    text = "".join(words[token] for token in ids if token >= 0)
    return text.replace("\u202e", "\\x202e").replace("\n", "⏎").replace("\t", "→")


def test_texts_stand_as_they_were_written(client: TestClient, words: list[str]) -> None:
    found = client.get(f"/api{RUN}/{LATENT}").json()["steered"]
    assert [one["kind"] for one in found] == ["continuation"] * 4 + ["answer"] * 2
    for number, one in enumerate(found[:4]):
        whole = CONTINUED.prompt_ids(number).tolist()
        assert one["is_cut"] is (len(whole) > 24)
        assert one["prompt"] == visible(whole[-24:] if one["is_cut"] else whole[1:], words)
        own, other = ({"steered": who, "target": 0.5, "strength": by} for who, by in ((LATENT, 1.5), (OTHER, 2.5)))
        rows = CONTINUED.tokens[3 * number : 3 * number + 3].tolist()
        clean, steered, control = (visible(row, words) for row in rows)
        assert one["without"] == {
            "steered": None, "target": None, "strength": None, "text": clean, "broken": None,
        }  # fmt: skip
        assert one["steered"] == [own | {"text": steered, "broken": None}]
        assert one["others"] == [other | {"text": control, "broken": None}]
    for number, one in enumerate(found[4:]):
        assert one["prompt"] == f"Say {number}: {visible([HOSTILE_TOKEN], words).strip()}"
        assert not one["is_cut"]
        assert [text["target"] for text in one["steered"]] == [0.5, 2.0]
        assert [text["steered"] for text in one["others"]] == [OTHER + 1, OTHER]
    assert [text["broken"] for text in found[4]["steered"]] == ["repeats", None]
    mine = client.get(f"/api{RUN}/{OTHER}").json()["steered"]
    assert mine[0]["without"]["text"] == visible(token_ids(NUM_PROMPTS, 0), words)
    for none in (UNREACHED, 5):  # no strength; no file of its chunk
        assert client.get(f"/api{RUN}/{none}").json()["steered"] == []


def test_the_page_shows_both_beside_each_other(client: TestClient) -> None:
    page = client.get(f"{RUN}/{LATENT}").text
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert page.count('<div class="steered">') == 6
    found = client.get(f"/api{RUN}/{LATENT}").json()["steered"]
    pairs = re.findall(r'<div class="pair">\s*<div><h3>As it is</h3>(.*?)</div>\s*<div>(.*?)</div>', page, re.DOTALL)
    assert len(pairs) == 6
    for (clean, steered), one in zip(pairs, found, strict=True):
        assert html.unescape(re.sub(r"<[^>]*>", "", clean)) == one["without"]["text"]
        shown = html.unescape(re.sub(r"<[^>]*>", "", steered))
        for text in one["steered"]:
            assert text["text"] in shown
            assert f"{text['target']:g} nats a token" in shown
    assert "says the same again and again" in page
    assert f'<a href="{RUN}/{OTHER}">Latent {OTHER}</a>' in page
    assert "What steering it writes" not in client.get(f"{RUN}/5").text


def test_what_prompts_show_of_windows_counts_as_seen(folder: Path) -> None:
    """Token by token: the window that each shown token stands in. Instructions are no windows."""
    context = open_world(folder)
    wanted = set()
    for number in range(4):
        length = len(CONTINUED.prompt_ids(number))
        for at in range(max(length - 24, 0), length):
            start = next(start for start in range(0, 1000, WINDOW) if start <= at < start + WINDOW)
            wanted.add((30 + number, start))
    assert windows_shown(context, SOURCE, LATENT) == wanted
    assert windows_shown(context, SOURCE, UNREACHED) == windows_shown(context, SOURCE, 5) == frozenset()
    context.store.close()
    pool = ExemplarStore.open(RunFolder(folder).exemplars(SOURCE)).pool(Side.SCORE)
    assert set(np.unique(pool.position).tolist()) <= set(range(0, 1000, WINDOW))


def test_a_file_that_is_none_is_one_sentence(served_run: Path, tmp_path: Path) -> None:
    own = shutil.copytree(served_run, tmp_path / "runs" / "own")
    path = RunFolder(own).evidence(SOURCE, "steered_texts", CHUNK)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"nothing of the kind")
    with TestClient(create_app(ServerSettings(home=own.parent)), base_url="http://127.0.0.1") as client:
        answer = client.get(f"/api{RUN}/{LATENT}")
        body: dict[str, Any] = answer.json()
        assert (answer.status_code, set(body)) == (400, {"status", "title", "detail"})
        assert str(tmp_path) not in body["detail"]
        assert client.get(f"/api{RUN}/5").status_code == 200
