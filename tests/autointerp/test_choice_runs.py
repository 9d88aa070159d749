"""``labels.choose = "best"`` in a whole run: the right one of two texts wins, and nobody compares them on the score side."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from autointerp.llm.server import Reply, RunningServer
from autointerp.llm.server.ledger import Call
from autointerp.prompting import load_prompt
from sae_core.exemplar_store import ExemplarStore
from sae_core.records import Side
from tests import planted_world
from tests.autointerp.test_llm_runs import answered, dictionary, is_explanation, run, windows_of, write_config
from tests.oracle import Oracle
from tests.planted_text import SENTENCES, PlantedText

TWO_EXPLAINERS = """
[labels]
choose = "best"
[[explainers]]
kind = "max_activating"
[[explainers]]
kind = "contrastive"
[[scorers]]
kind = "detection"
per_call = 20
"""
CLEAR = (1, 5, 6, 7, *range(9, 16))
"""Latents whose label the oracle tells without doubt, and that fire often enough to be judged."""
LABEL = re.compile(r'^Label: ("(?:[^"\\]|\\.)*")', re.MULTILINE)


class HalfWrong(Oracle):
    """Tells the truth to one explainer and another latent's label to the other, which stands first in the file."""

    def answer(self, request: dict[str, Any]) -> Reply:
        reply = super().answer(request)
        system = (request.get("messages") or [{}])[0].get("content")
        if system != load_prompt("max_activating").system.strip():
            return reply
        right = json.loads(reply.text)["label"]
        return Reply(json.dumps({"label": SENTENCES[6] if right != SENTENCES[6] else SENTENCES[5]}))


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Call]]:
    """A run with both explainers, and what the server saw of it."""
    world = tmp_path_factory.mktemp("choice-world")
    planted_world.build(world)
    out = world / "out"
    judge = HalfWrong(PlantedText.of_corpus(world / "corpus.jsonl", window_length=16))
    with RunningServer(judge) as server:
        done = run(write_config(world, "choice", server.url, TWO_EXPLAINERS), out)
        assert done.returncode == 0, done.stderr
        return out, server.calls


def rows(out: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(out / "autointerp.db") as connection:
        return connection.execute(query).fetchall()


def test_the_right_text_wins_over_the_first_one(chosen: tuple[Path, list[Call]]) -> None:
    out, _ = chosen
    written = {(latent, kind): text for latent, kind, text in rows(out, "SELECT latent, explainer, text FROM explanation WHERE source = 'planted'")}  # fmt: skip
    table = dictionary(out)
    for latent in CLEAR:
        assert written[latent, "max_activating"] != SENTENCES[latent]
        assert written[latent, "contrastive"] == SENTENCES[latent]
        assert (table.label[latent], table.explainer[latent]) == (SENTENCES[latent], "contrastive")
        assert table.detection_score[latent] > 0.9  # the figure of the text that was chosen
    decided = rows(out, "SELECT DISTINCT decided_by FROM label WHERE source = 'planted' AND status = 'labelled'")
    assert ("score on the choose side",) in decided


def test_the_judge_that_chooses_is_shown_windows_of_the_choose_side_alone(chosen: tuple[Path, list[Call]]) -> None:
    """Seen from the server: every question is about windows of one side, and each text is asked about on both."""
    out, calls = chosen
    store = ExemplarStore.open(out / "sources" / "planted" / "exemplars")
    sides: dict[str, set[Side]] = {}
    for side in Side:
        pool = store.pool(side)
        for row in pool.tokens[:, pool.context_tokens :]:
            special = store.pieces.special
            text = store.pieces.text(int(token) for token in row if token >= 0 and int(token) not in special)
            sides.setdefault(text, set()).add(side)
    asked: dict[Side, Counter[str]] = {side: Counter() for side in Side}
    for call in answered(calls):
        label = LABEL.search(call.request["messages"][-1]["content"])
        if is_explanation(call) or label is None:
            continue
        # a window that stands on two sides, by chance, tells nothing
        found = {next(iter(sides[text])) for text in windows_of(call) if len(sides[text]) == 1}
        assert len(found) == 1, (label.group(1), found)
        asked[found.pop()][json.loads(label.group(1))] += 1
    assert not asked[Side.EXPLAIN]
    # two calls for each text that was compared, the fake coder's directions among them
    compared = rows(out, "SELECT source, latent, explainer FROM choice WHERE failure_kind IS NULL")
    texts = {(source, latent, kind): text for source, latent, kind, text in rows(out, "SELECT source, latent, explainer, text FROM explanation")}  # fmt: skip
    assert {latent for source, latent, _ in compared if source == "planted"} >= set(CLEAR)
    assert asked[Side.CHOOSE] == Counter(texts[row] for row in compared for _ in range(2))
    assert set(asked[Side.CHOOSE]) <= set(asked[Side.SCORE])
