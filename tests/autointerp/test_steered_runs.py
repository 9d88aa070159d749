"""Label against effect in a whole run: the planted subject really writes, and a judge knows which word each latent raises."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from autointerp.evidence import LatentEvidence, SteeredAnswersRequest
from autointerp.explanation import Explanation
from autointerp.failure import FailureKind
from autointerp.llm.server import Reply, RunningServer, TokenOdds
from autointerp.llm.server.answers import schema_of
from autointerp.llm.server.ledger import Call
from autointerp.pipeline.finding import find_run
from autointerp.pipeline.stage import latent_chunks
from autointerp.pipeline.stages import steer_texts
from autointerp.pipeline.starting import open_run
from autointerp.prompting import load_prompt
from autointerp.report.label_effect import label_effect_block
from autointerp.scorers.steered_rating import SteeredRatingScorer
from sae_core.exemplar_store import ExemplarStore
from sae_core.intervention.evidence import SteeringEvidence
from sae_core.intervention.text_evidence import CLEAN, SteeredTexts, TextState
from tests import planted_world
from tests.autointerp.test_llm_runs import answered, dictionary, run, write_config
from tests.oracle import BLOCK, LABEL, LINE, Oracle
from tests.planted_text import _WORD, SENTENCES, PlantedText
from tests.planted_world import NUM_LATENTS, build_coder, build_subject

COMPONENTS = """
[[explainers]]
kind = "max_activating"
[[explainers]]
kind = "output"
prompts = 4
[[scorers]]
kind = "intervention"
windows = 4
steered_latents = 20
steering_prompts = 8
steering_targets = [0.33, 1.0]
steering_control_directions = 2
[[scorers]]
kind = "steered_surprisal"
texts = 8
other_labels = 3
min_texts = 4
target = 0.33
[[scorers]]
kind = "steered_choice"
texts = 8
min_texts = 4
target = 0.33
[[scorers]]
kind = "steered_rating"
texts = 6
new_tokens = 12
"""
RAISED = {5: "return", 7: "("}
"""What the subject does with two latents, by its weights; the others write their token's slot, or what nothing reads."""


def raised_word(latent: int) -> str | None:
    """The word that a latent makes likelier, by the coder's and the subject's weights."""
    if latent in RAISED:
        return RAISED[latent]
    row = build_coder().decoder_weight[latent][: len(planted_world.VOCABULARY)]
    return planted_world.VOCABULARY[int(row.argmax())] if float(row.max()) > 0 else None


class Knowing(Oracle):
    """Reads labels as the word that their latent raises, and counts it in what was written."""

    def word(self, label: str) -> str | None:
        """The word that the subject writes more of where the label is right."""
        found = re.match(r"tokens such as (\S+),", label)
        if found:
            return found.group(1)
        latent = next((latent for latent, sentence in SENTENCES.items() if sentence == label), None)
        return None if latent is None else raised_word(latent)

    def hits(self, label: str, text: str) -> int:
        return _WORD.findall(text).count(self.word(label))

    def answer(self, request: dict[str, Any]) -> Reply:
        keys = list((schema_of(request) or {}).get("properties", {}))
        if not {"texts", "ratings", "fluency"} & set(keys):
            return super().answer(request)
        asked = request["messages"][-1]["content"]
        blocks = [[json.loads(line) for line in LINE.findall(block)] for _, block in BLOCK.findall(asked)]
        if "fluency" in keys:
            good = [2] * len(blocks[0])
            return Reply(json.dumps({"instruction": good, "fluency": good}))
        label = json.loads(LABEL.search(asked).group(1))  # type: ignore[union-attr]
        hits = [[self.hits(label, text) for text in texts] for texts in blocks]
        if "texts" in keys:
            return Reply(json.dumps({"texts": [int(np.argmax(row)) + 1 for row in hits]}))
        return Reply(json.dumps({"ratings": [min(count, 2) for count in hits[0]]}))

    def prompt_odds(self, text: str, pieces: list[str]) -> list[TokenOdds]:  # type: ignore[override]
        before, found, label = text.rpartition("\nThe idea that was turned up:\n")
        if not found:
            return super().prompt_odds(text, pieces)
        written = json.loads(re.search(r'^Continuation: (".*")$', before, re.MULTILINE).group(1))  # type: ignore[union-attr]
        return [TokenOdds(-6 + 0.5 * self.hits(label, written), {})] * len(pieces)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Call]]:
    world = tmp_path_factory.mktemp("steered-world")
    planted_world.build(world)
    out = world / "out"
    judge = Knowing(PlantedText.of_corpus(world / "corpus.jsonl", window_length=16))
    with RunningServer(judge) as server:
        config = write_config(world, "steered", server.url, COMPONENTS)
        config.write_text(config.read_text().replace("random_directions = 4", "random_directions = 0"))
        ended = run(config, out)
        assert ended.returncode == 0, ended.stderr
        calls = server.calls
        again = run(config, out)
        assert "nothing to do" in again.stdout
        assert len(server.calls) == len(calls)
    return out, calls


def texts_of(out: Path, kind: str = "steered_texts") -> list[SteeredTexts]:
    return [
        SteeredTexts.load(path) for path in sorted((out / "sources/planted/evidence").glob(f"{kind}-*.safetensors"))
    ]


def scores(out: Path, table: str = "score") -> pd.DataFrame:
    with sqlite3.connect(out / "autointerp.db") as connection:
        return pd.read_sql(f"SELECT * FROM {table} WHERE source = 'planted'", connection)


def test_texts_begin_where_the_latent_fires_and_at_the_strength_that_was_found(done: tuple[Path, list[Call]]) -> None:
    out, _ = done
    store = ExemplarStore.open(out / "sources/planted/exemplars")
    strengths = {}
    for path in (out / "sources/planted/evidence").glob("steering-*.safetensors"):
        steering = SteeringEvidence.load(path)
        for row in range(len(steering.latent)):
            strengths[int(steering.latent[row]), float(steering.target[row])] = float(steering.alpha[row])
    found = texts_of(out)
    assert sum(len(texts.latents) for texts in found) == NUM_LATENTS - 1  # the dead one is not steered
    for texts in found:
        for latent in texts.latents.tolist():
            alpha = strengths[latent, 0.33]
            assert (texts.state_of(latent) is TextState.TEXTS) == np.isfinite(alpha), latent
            rows = texts.rows_of(latent)
            own = rows[texts.steered[rows] == latent]
            assert (texts.alpha[own] == alpha).all()
            assert (texts.target[own] == 0.33).all()
            others = texts.steered[rows][~np.isin(texts.steered[rows], (latent, CLEAN))]
            assert len(others) == 2 * len(own)
            for prompt in np.unique(texts.prompt[rows]):
                words = store.pieces.text(texts.prompt_ids(int(prompt)).tolist())
                if latent in (5, 6, 7):
                    assert words.endswith({5: "def", 6: "return", 7: "cls"}[latent])


def test_the_texts_are_what_the_steered_subject_writes(done: tuple[Path, list[Call]]) -> None:
    """Log-probabilities of the written tokens, by a plain forward pass with a hook, steered from the prompt's last token on."""
    out, _ = done
    model, coder = build_subject(), build_coder()
    checked = 0
    for texts in texts_of(out):
        for row in texts.rows_of(5).tolist()[:8]:
            prompt, written = texts.prompt_ids(int(texts.prompt[row])), texts.text_ids(row)
            ids = torch.tensor([[*prompt.tolist(), *written.tolist()]])
            steered, begins = int(texts.steered[row]), len(prompt) - 1

            def push(_module: Any, _args: Any, output: Any, steered: int = steered, begins: int = begins, row: int = row, texts: SteeredTexts = texts) -> Any:  # fmt: skip
                hidden = output[0] if isinstance(output, tuple) else output
                hidden = hidden.clone()
                hidden[:, begins:] += float(texts.alpha[row]) * coder.decoder_weight[steered]
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            for edited, kept in ((True, texts.logprob_own), (False, texts.logprob_clean)):
                handle = model.transformer.h[0].register_forward_hook(push) if edited and steered != CLEAN else None
                with torch.no_grad():
                    logits = model(ids).logits[0].log_softmax(-1)
                if handle is not None:
                    handle.remove()
                expected = [float(logits[begins + i, token]) for i, token in enumerate(written.tolist())]
                assert kept[row][: len(written)] == pytest.approx(expected, abs=1e-4)
                checked += len(written)
    assert checked > 50


def test_labels_of_what_a_latent_does_are_found_in_what_it_writes(done: tuple[Path, list[Call]]) -> None:
    out, _ = done
    table = dictionary(out)
    assert table.label_output[5] == "tokens such as return, likelier"
    for latent in (5, 7):  # the judge knows the word by the input label too
        assert table.steered_choice_score[latent] > 0.7
        assert table.steered_choice_low[latent] > 1 / 3
        assert table.steered_surprisal_low[latent] > 0
        assert table.steered_surprisal_above[latent] == 1.0
        assert table.output_label_steered_surprisal_low[latent] > 0
        assert table.output_label_steered_choice_low[latent] > 1 / 3
        assert 0 < table.steered_rating_score[latent] <= 2
    # nobody reads what latent 6 writes: no strength meets a target, which is its failure and no 0
    assert pd.isna(table.steered_surprisal_score[6])
    assert table.steered_surprisal_failure[6] == "unreachable"
    assert table.steered_rating_failure[6] == "unreachable"
    assert pd.isna(table.steered_choice_failure[3])  # dead, so not in the sample
    kept = scores(out)
    assert set(kept[kept.scorer.str.startswith("steered")].latent) == set(range(NUM_LATENTS)) - {3}


def test_shuffled_labels_are_not(done: tuple[Path, list[Call]]) -> None:
    out, _ = done
    controls = scores(out, "control_row")
    shuffled = controls[(controls.kind == "shuffled")]
    judges = {component.partition("/")[0] for component in shuffled.component}
    assert {"steered_choice", "steered_rating"} <= judges
    assert "steered_surprisal" not in judges  # it has its control in itself
    values = [json.loads(text) for text in shuffled[shuffled.component.str.startswith("steered_choice")]["values"]]
    wrong = [value["steered_choice_score"] for value in values if value.get("steered_choice_score") is not None]
    assert len(wrong) >= 8
    assert np.mean(wrong) < 0.5
    frame = dictionary(out).reset_index()
    block = label_effect_block(frame, pd.DataFrame([{"kind": "shuffled", **value} for value in values]))
    assert block["steered_choice"]["input"]["shuffled_mean"] == pytest.approx(np.mean(wrong))
    assert block["steered_choice"]["input"]["num_asked"] == NUM_LATENTS - 1
    assert block["steered_choice"]["input"]["failures"]["unreachable"] >= 1
    assert block["steered_surprisal"]["input"]["share_above_chance"] > 0.2
    assert set(block["steered_rating"]) == {"input", "output"}


def test_instructions_of_a_subject_without_a_chat_template_are_its_corpus(done: tuple[Path, list[Call]]) -> None:
    out, calls = done
    (texts, *_) = texts_of(out, "steered_answers")
    assert not texts.instructions
    assert (texts.prompt_context >= 0).all()
    assert set(texts.target[np.isfinite(texts.target)]) == {0.33, 1.0}
    names = ("steered_choice", "steered_concept", "steered_fluency")
    systems = {load_prompt(name).system.strip(): name for name in names}
    asked = [systems.get(call.request["messages"][0]["content"]) for call in answered(calls)]
    assert all(asked.count(name) > 5 for name in names)


def test_instructions_too_long_for_the_subject_are_said_to_be(
    done: tuple[Path, list[Call]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers as long as the subject's context leave no room for what they answer, however often a latent fires."""
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    context = open_run(*find_run(str(out)), out)
    request = SteeredAnswersRequest(latents=20, texts=6, new_tokens=context.subject.max_context)
    monkeypatch.setattr(steer_texts, "texts_requests", lambda context: [request])
    spec = latent_chunks(context)[0]
    steer_texts.SteerTexts().run(context, spec, lambda done: None)
    found = SteeredTexts.load(context.folder.evidence("planted", "steered_answers", 0))
    states = {latent: found.state_of(latent) for latent in found.latents.tolist()}
    assert states[5] is TextState.NO_ROOM
    assert states[6] is TextState.UNREACHABLE
    assert set(states.values()) == {TextState.NO_ROOM, TextState.UNREACHABLE}
    evidence = LatentEvidence(5, context.exemplars("planted"), steered_answers=found)
    said = asyncio.run(SteeredRatingScorer().score(Explanation(latent=5, explainer="hand", text="x"), evidence))
    assert said.failure is not None
    assert said.failure.kind is FailureKind.TOO_FEW_TEXTS
    assert "every instruction is too long" in said.failure.message


def test_the_summary_has_medians_over_the_sample(done: tuple[Path, list[Call]]) -> None:
    out, _ = done
    judged = json.loads((out / "summary.json").read_text())["judged"]
    assert judged["steered_choice"]["num_latents"] == NUM_LATENTS - 1
    assert not [kind for kind in judged if kind.startswith("output_label")]
