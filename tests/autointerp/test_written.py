"""Precision on written texts: whole runs whose counts are made again by running the planted subject by hand, and every failure."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from asyncio import run
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from math import comb, hypot
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import beta

from autointerp.components import parse_component
from autointerp.config import load_config
from autointerp.explainers.base import Explainer
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.judging.written_texts import LONGEST_TEXT, WrittenTexts
from autointerp.llm.asking import AskFailed
from autointerp.llm.protocol import CompletionRequest, Usage
from autointerp.llm.scripted import ScriptedLLMs
from autointerp.llm.server import RunningServer
from autointerp.llm.server.faults import FaultRule
from autointerp.llm.server.ledger import Call
from autointerp.planning.plan import plan_run
from autointerp.prompting import load_prompt
from autointerp.score import Score
from autointerp.scorers.comparing import comparing_scorer
from autointerp.scorers.detection import DetectionScorer
from autointerp.scorers.written import WrittenScorer
from autointerp.statistics.two_rates import difference, rate
from sae_core.errors import ConfigError
from sae_core.tried_texts import TriedText
from tests import planted_world
from tests.autointerp.judged_world import evidence_of, make_store
from tests.autointerp.test_llm_runs import CONFIG, dictionary, environment, oracle
from tests.cli_process import run_cli
from tests.planted_text import SENTENCES
from tests.planted_world import BOS, NUM_LATENTS, build_coder, build_subject, token_id

pytestmark = pytest.mark.long

BROAD, NARROW, WRONG = 5, 0, 12
GIVEN = {
    latent: f"the words w{latent - 1} and w{latent - 5}" for latent in range(9, NUM_LATENTS)
} | {BROAD: "the words def, return and cls", NARROW: "the digit 5", WRONG: "the word zzz"}  # fmt: skip
"""Labels from elsewhere, beside those that the oracle finds; of other latents none is given."""
COMPONENTS = """
[[explainers]]
kind = "max_activating"
[[explainers]]
kind = "imported"
path = "labels.jsonl"
[[scorers]]
kind = "written"
matching = 12
near = 9
"""
ASKED = re.compile(r'^Label: (".*")\nWrite 12 matching texts and 9 near misses\.$', re.MULTILINE)


class Row(NamedTuple):
    """A score as it is stored."""

    source: str
    latent: int
    explainer: str
    values: dict[str, Any]
    failure: str | None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written-world")
    planted_world.build(folder)
    lines = [json.dumps({"latent": latent, "label": label}) for latent, label in GIVEN.items()]
    (folder / "labels.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def label(world: Path, out: str, url: str, *more: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    config = world / f"{out}.toml"
    config.write_text(CONFIG.replace("URL", url).replace("random_directions = 4", "random_directions = 3") + COMPONENTS)
    return run_cli(["run", str(config), "--out", str(world / out), *more], {**environment(), "AUTOINTERP_FAULT": fault})


def query(out: Path, words: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(out / "autointerp.db") as connection:
        return connection.execute(words).fetchall()


def scores(out: Path) -> list[Row]:
    words = "SELECT source, latent, explainer, \"values\", failure_kind FROM score WHERE scorer = 'written' ORDER BY 1, 2, 3"
    return [Row(*row[:3], json.loads(row[3]), row[4]) for row in query(out, words)]


def shuffled(out: Path) -> list[Row]:
    words = (
        "SELECT source, latent, component, \"values\", failure_kind FROM control_row WHERE component LIKE 'written/%' "
        "AND kind = 'shuffled' ORDER BY 1, 2, 3"
    )
    found = query(out, words)
    return [Row(source, latent, who.split("/")[1], json.loads(v), why) for source, latent, who, v, why in found]


def labels_of(out: Path) -> dict[tuple[str, int, str], str]:
    """Text by source, latent and explainer."""
    found = query(out, "SELECT source, latent, explainer, text FROM explanation WHERE failure_kind IS NULL")
    return {(source, latent, explainer): text for source, latent, explainer, text in found}


@pytest.fixture(scope="module")
def scored(world: Path) -> tuple[Path, list[Call]]:
    """One run without faults, and what the server saw of it."""
    with RunningServer(oracle(world)) as server:
        done = label(world, "scored", server.url)
        assert done.returncode == 0, done.stderr
        calls = server.calls
    return world / "scored", calls


SUBJECT, ENCODER = build_subject(), build_coder().encoder


def fires(latent: int, text: str) -> bool:
    """Whether a latent fires in a text that the planted subject reads alone after the BOS, with nothing of the pipeline."""
    ids = torch.tensor([[token_id(BOS), *(token_id(word) for word in text.split())]])
    with torch.no_grad():
        stream = SUBJECT(ids, output_hidden_states=True).hidden_states[1][0, 1:]
    assert ENCODER.bias is not None
    return bool((stream @ ENCODER.weight[latent] + ENCODER.bias[latent] > 0.5).any())


def texts_of(world: Path, calls: Iterable[Call]) -> dict[str, dict[str, list[str]]]:
    """What the server answered to each label's prompt."""
    found = {}
    for call in calls:
        asked = ASKED.search(call.prompt)
        if asked is not None:
            found[json.loads(asked[1])] = json.loads(oracle(world).answer(call.request).text)
    return found


def counted(latent: int, texts: dict[str, list[str]]) -> tuple[int, int]:
    """Matching texts and near misses on which the latent fires."""
    return sum(fires(latent, text) for text in texts["matching"]), sum(fires(latent, text) for text in texts["near"])


def test_rates_are_those_of_the_planted_subject_run_by_hand(world: Path, scored: tuple[Path, list[Call]]) -> None:
    out, calls = scored
    texts, labels = texts_of(world, calls), labels_of(out)
    rows = [row for row in scores(out) if row.source == "planted" and row.failure is None]
    assert {(row.latent, row.explainer) for row in rows} == {at[1:] for at in labels if at[0] == "planted"}
    assert len(rows) == 15 + len(GIVEN)  # all but the dead one, and what is given
    for row in rows:
        own = texts[labels[row[:3]]]
        assert [len(own["matching"]), len(own["near"])] == [12, 9]
        matching, near = counted(row.latent, own)
        values = row.values
        assert values["written_precision"] == pytest.approx(matching / 12)
        assert values["written_near_rate"] == pytest.approx(near / 9)
        assert values["written_score"] == pytest.approx(matching / 12 - near / 9)
        assert (values["written_matching"], values["written_near"], values["written_failed"]) == (12, 9, 0)
        assert values["written_silent_texts"] == [text for text in own["matching"] if not fires(row.latent, text)]
        assert values["written_fired_near_texts"] == [text for text in own["near"] if fires(row.latent, text)]
        for name, hits, total in (("precision", matching, 12), ("near_rate", near, 9)):
            low, high = values[f"written_{name}_low"], values[f"written_{name}_high"]
            assert low == pytest.approx(beta.ppf(0.025, hits, total - hits + 1) if hits else 0)
            assert high == pytest.approx(beta.ppf(0.975, hits + 1, total - hits) if hits < total else 1)


def test_right_broad_narrow_and_wrong_labels_differ_as_they_must(scored: tuple[Path, list[Call]]) -> None:
    found = {row[1:3]: row.values for row in scores(scored[0]) if row.source == "planted"}
    for latent in (0, 1, 5, 6, 7, *range(9, NUM_LATENTS)):
        right = found[latent, "max_activating"]
        assert (right["written_precision"], right["written_near_rate"], right["written_score"]) == (1, 0, 1)
        assert right["written_precision_low"] == pytest.approx(0.025 ** (1 / 12))
    broad, narrow, wrong = (found[latent, "imported"] for latent in (BROAD, NARROW, WRONG))
    assert broad["written_precision"] < 0.7
    assert broad["written_near_rate"] == 0
    assert narrow["written_precision"] == 1
    assert narrow["written_near_rate"] > 0.3
    assert abs(wrong["written_score"]) < 0.4
    # in every text there is a first token, so of its label nobody can write a near miss
    assert found[8, "max_activating"]["written_near_rate"] == 1
    assert found[8, "max_activating"]["written_score"] == 0


def test_shuffled_labels_are_tried_on_the_latent_that_they_are_given_to(
    world: Path, scored: tuple[Path, list[Call]]
) -> None:
    out, calls = scored
    texts, labels = texts_of(world, calls), labels_of(out)
    specs = query(out, "SELECT spec FROM chunk WHERE stage = 'controls' AND source = 'planted'")
    chunks = [json.loads(spec) for (spec,) in specs]
    donor_of = {latent: donor for spec in chunks if "null_labels" not in spec for latent, donor in spec["pairs"]}
    rows = shuffled(out)
    assert {row.latent for row in rows} == set(donor_of) == set(range(NUM_LATENTS)) - {3}
    assert len({row.latent // 8 for row in rows}) == 2  # chunks of 8 latents: donors lie in others too
    for row in rows:
        assert row.failure is None
        own = texts[labels["planted", donor_of[row.latent], row.explainer]]
        matching, near = counted(row.latent, own)
        assert row.values["written_precision"] == pytest.approx(matching / 12)
        assert row.values["written_near_rate"] == pytest.approx(near / 9)
        assert not {"written_calls", "written_input_tokens", "written_cost_usd"} & row.values.keys()
    summary = json.loads((out / "summary.json").read_text())["judged"]["written"]
    assert summary["median"] == 1
    assert abs(summary["shuffled"]["mean"]) < 0.3
    assert summary["shuffled"]["num_latents"] == len(donor_of)
    assert summary["failed"]["num_questions"] == 21 * 15
    assert summary["failed"]["share"] == summary["shuffled"]["failed"]["share"] == 0


def test_random_directions_are_scored_too(scored: tuple[Path, list[Call]]) -> None:
    rows = [row for row in scores(scored[0]) if row.source != "planted" and row.explainer == "max_activating"]
    assert len(rows) == 3
    assert all(row.failure in (None, "no_explanation") for row in rows)
    assert any(row.failure is None and 0 <= row.values["written_precision"] <= 1 for row in rows)


def test_a_label_costs_one_call_and_its_score_says_so(scored: tuple[Path, list[Call]]) -> None:
    out, calls = scored
    ledger = query(
        out,
        "SELECT source, latent, count(*), sum(input_tokens), sum(output_tokens), sum(cost_nano_usd) FROM llm_call "
        "WHERE purpose = 'written' GROUP BY 1, 2",
    )
    asked = [call for call in calls if ASKED.search(call.prompt)]
    texts = list(labels_of(out).values())
    # the same label of another latent is the same question, which is asked once
    assert sum(row[2] for row in ledger) == len(asked) == len(set(texts))
    shared = {at[:2] for at, text in labels_of(out).items() if texts.count(text) > 1}
    assert sum(row[3] for row in ledger) == sum(call.prompt_tokens for call in asked)
    said: dict[tuple[str, int], list[float]] = {}
    for row in scores(out):
        if row.failure is None:
            names = ("calls", "input_tokens", "output_tokens", "cost_usd")
            one = [row.values[f"written_{name}"] for name in names]
            said[row[:2]] = [a + b for a, b in zip(said.get(row[:2], [0] * 4), one, strict=True)]
            assert row.values["written_prompt_hash"] == load_prompt("written").hash
            assert row.values["judge_model"] == "test"
    alone = [row for row in ledger if row[:2] not in shared]
    assert len(alone) > 8
    for source, latent, count, read, wrote, nano in alone:
        assert said[source, latent] == [count, read, wrote, pytest.approx(nano / 1e9)]


def test_no_window_of_the_corpus_is_in_the_prompt(scored: tuple[Path, list[Call]]) -> None:
    static = load_prompt("written").request({"label": "", "matching": 1, "near": 1}).messages[:-1]
    for call in scored[1]:
        asked = ASKED.search(call.prompt)
        if asked is not None:
            messages = call.request["messages"]
            assert [m["content"] for m in messages[:-1]] == [m.content for m in static]
            assert messages[-1]["content"] == asked[0]


def test_the_dictionary_and_show_have_it(scored: tuple[Path, list[Call]]) -> None:
    table = dictionary(scored[0])
    own = {row.latent: row.values for row in scores(scored[0]) if row[0] == "planted" and row[2] == "max_activating"}
    names = [f"written_{name}" for name in ("precision", "precision_low", "precision_high", "near_rate", "near_rate_low",
             "near_rate_high", "score")]  # fmt: skip
    for name in names:
        for latent, values in own.items():
            expected = values.get(name)
            assert (
                table[name][latent] == pytest.approx(expected)
                if expected is not None
                else np.isnan(table[name][latent])
            )
    assert table.num_judged.isna().all()  # texts are no windows that were judged
    shown = run_cli(["show", str(scored[0]), "8"], environment())
    assert shown.returncode == 0, shown.stderr
    plain = " ".join(shown.stdout.split())
    assert (
        "it fires on 12 of 12 texts that test wrote to match the label (100% [74%, 100%]) and on 9 of 9 near misses"
        in plain
    )
    assert "not a precision at the natural rate" in plain
    assert "held-out windows" not in plain


MOMENTS = ("write:before_write:1", "write:after_write:2", "try_written:before_write:1", "try_written:after_claim:2",
           "try_shuffled:before_write:1", "controls:after_claim:1")  # fmt: skip


def test_a_killed_run_ends_in_the_same_rows(world: Path, scored: tuple[Path, list[Call]]) -> None:
    with RunningServer(oracle(world)) as server:
        for fault in MOMENTS:
            if fault == MOMENTS[-1]:  # a barrier lies between: all is written by now
                before = len(server.calls)
            died = label(world, "killed", server.url, fault=fault)
            assert died.returncode == -9, (fault, died.stderr)
        done = label(world, "killed", server.url)
        assert done.returncode == 0, done.stderr
        asked = [json.dumps(call.request) for call in server.calls[:before] if ASKED.search(call.prompt)]
        assert not any(ASKED.search(call.prompt) for call in server.calls[before:])  # what was written is kept
    assert len(asked) < 2 * len(set(asked))  # but what was under way
    assert scores(world / "killed") == scores(scored[0])
    assert shuffled(world / "killed") == shuffled(scored[0])


def test_what_a_server_failed_is_typed_and_given_back_by_retry(world: Path, scored: tuple[Path, list[Call]]) -> None:
    prompt = f"Label: {json.dumps(SENTENCES[10])}\nWrite"
    with RunningServer(oracle(world), faults=[FaultRule("too_long", containing=prompt)]) as server:
        done = label(world, "retry", server.url)
        assert done.returncode == 0, done.stderr
    out = world / "retry"
    failed = [row for row in scores(out) if row.failure == "server_error"]
    assert [row[:3] for row in failed] == [("planted", 10, "max_activating")]
    assert failed[0].values["written_failed"] == failed[0].values["written_failed_server_error"] == 21
    assert {"written_precision", "written_score"}.isdisjoint(failed[0].values)
    assert [row.failure for row in shuffled(out) if row.failure] == ["server_error"]
    with RunningServer(oracle(world)) as server:
        retried = label(world, "retry", server.url, "--retry")
        assert retried.returncode == 0, retried.stderr
        asked = [call.prompt for call in server.calls if ASKED.search(call.prompt)]
    assert len(asked) == 1
    assert prompt in asked[0]
    assert scores(out) == scores(scored[0])
    assert shuffled(out) == shuffled(scored[0])
    with RunningServer(oracle(world)) as server:
        assert "nothing to do" in label(world, "retry", server.url, "--retry").stdout


def test_a_run_without_such_a_scorer_has_no_such_stages(world: Path, tmp_path: Path) -> None:
    (tmp_path / "none.toml").write_text(
        CONFIG.replace('"subject"', f'"{world}/subject"').replace('"coder"', f'"{world}/coder"')
        .replace('"corpus.jsonl"', f'"{world}/corpus.jsonl"').replace("15000", "4000").replace("URL", "http://127.0.0.1:1/v1")
        + '[[explainers]]\nkind = "pattern"\n[[scorers]]\nkind = "pattern"\n'
    )  # fmt: skip
    done = run_cli(["run", str(tmp_path / "none.toml"), "--out", str(tmp_path / "none")], dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert query(tmp_path / "none", "SELECT count(*) FROM chunk WHERE stage LIKE '%wri%' OR stage LIKE 'try%'") == [
        (0,)
    ]


# --- the scorer alone

LABEL = Explanation(latent=0, explainer="hand", text='cats, "and" a little\u200b less dogs')
STORE = make_store()


def answer(matching: Iterable[str], near: Iterable[str]) -> str:
    return json.dumps({"matching": list(matching), "near": list(near)})


def numbered(word: str, count: int) -> list[str]:
    return [f"{word} {number}" for number in range(count)]


GOOD = answer(numbered("cat", 10), numbered("dog", 10))


def write(text: str, **fields: Any) -> tuple[WrittenTexts, list[CompletionRequest]]:
    llms = ScriptedLLMs(lambda _: text)
    return run(WrittenScorer(**fields).write(LABEL, llms)), llms.asked


def tried(written: WrittenTexts, firing: Iterable[str], lost: Iterable[str] = ()) -> list[TriedText]:
    """Texts as the subject would have read them, with tokens of no meaning."""
    firing, lost = set(firing), set(lost)
    ids, nothing = np.arange(3, dtype=np.int32), np.zeros(0, dtype=np.float32)
    return [
        TriedText(0, 0, text, ids[:0], nothing)
        if text in lost
        else TriedText(0, 0, text, ids, np.array([0, -2.5 * (text in firing), 0], dtype=np.float32))
        for text in written.texts
    ]


def score(written: WrittenTexts | None, tests: Iterable[TriedText], latent: int = 0, **fields: Any) -> Score:
    evidence = replace(evidence_of(STORE, latent), written=() if written is None else (written,), tried=tuple(tests))
    return run(WrittenScorer(**fields).score(LABEL.model_copy(update={"latent": latent}), evidence))


def kind_of(failed: Score | WrittenTexts) -> str:
    assert failed.failure is not None
    return failed.failure.kind.value


def test_counts_and_what_it_took() -> None:
    written, asked = write(GOOD)
    assert (written.matching, written.near) == (tuple(numbered("cat", 10)), tuple(numbered("dog", 10)))
    assert len(asked) == 1
    assert json.loads(re.search(r"^Label: (.*)$", asked[0].messages[-1].content, re.MULTILINE)[1]) == LABEL.text  # type: ignore[index]
    assert "\u200b" not in asked[0].messages[-1].content  # what cannot be seen is written as an escape
    found = score(written, tried(written, ["cat 1", "cat 2", "cat 7", "dog 3", "another"]))
    assert found.failure is None
    assert found.values["written_precision"] == 0.3
    assert found.values["written_near_rate"] == 0.1
    assert found.values["written_score"] == pytest.approx(0.2)
    assert found.values["written_fired_near_texts"] == ("dog 3",)
    assert found.values["written_tried"] == 20
    assert found.values["written_failed"] == 0
    assert found.values["written_calls"] == 1
    assert found.values["written_input_tokens"] > 100  # type: ignore[operator]
    assert WrittenScorer.CHANCE == 0


@pytest.mark.parametrize(
    ("matching", "near", "left"),
    [
        (["", "  \n", "x" * (LONGEST_TEXT + 1), *numbered("cat", 5)], numbered("dog", 9), (5, 9)),
        (["cat 1"] * 3 + numbered("cat", 6), numbered("dog", 30), (6, 10)),
        (numbered("cat", 8), numbered("cat", 3) + numbered("dog", 6), (5, 6)),  # nobody knows which of both is meant
    ],
)
def test_texts_that_cannot_be_used_are_left_out(matching: list[str], near: list[str], left: tuple[int, int]) -> None:
    written, asked = write(answer(matching, near))
    assert (len(written.matching), len(written.near), len(asked)) == (*left, 1)
    found = score(written, tried(written, written.matching))
    assert found.values["written_precision"] == 1
    assert found.values["written_failed"] == found.values.get("written_failed_unparseable", 0) == 20 - sum(left)


def test_too_few_texts_are_asked_for_again_and_then_a_typed_failure() -> None:
    written, asked = write(answer(numbered("cat", 10), numbered("dog", 4)))
    assert len(asked) == 3
    assert "4 of the 4 texts of 'near' can be used and 5 are needed" in asked[1].messages[-1].content
    assert kind_of(written) == "too_few_texts"
    assert written.texts == ()
    failed = score(written, [])
    assert kind_of(failed) == "too_few_texts"
    assert failed.values["written_failed_too_few_texts"] == 20
    assert failed.values["written_output_tokens"] == written.spent["written_output_tokens"] > 100  # type: ignore[operator]
    assert not {"written_score", "written_precision"} & failed.values.keys()
    written, _ = write(answer(numbered("cat", 1), numbered("dog", 1)), min_texts=1)
    assert written.failure is None


@pytest.mark.parametrize("kind", [FailureKind.REFUSED, FailureKind.TIMEOUT, FailureKind.UNPARSEABLE])
def test_a_call_s_own_failure_is_the_score_s(kind: FailureKind) -> None:
    def fail(_: CompletionRequest) -> str:
        if kind is FailureKind.UNPARSEABLE:
            return '{"matching": "cats"}'
        raise AskFailed(Failure(kind=kind, message="it was so"), Usage(input_tokens=7, cost_usd=0.5))

    written = run(WrittenScorer().write(LABEL, ScriptedLLMs(fail)))
    failed = score(written, [])
    assert kind_of(failed) == kind.value
    assert failed.values[f"written_failed_{kind.value}"] == failed.values["written_failed"] == 20
    assert failed.values["written_tried"] == 0
    assert failed.values["written_calls"] == 1
    if kind is not FailureKind.UNPARSEABLE:
        assert (failed.values["written_input_tokens"], failed.values["written_cost_usd"]) == (7, 0.5)


def test_texts_that_were_not_run_are_in_no_rate() -> None:
    written, _ = write(GOOD)
    found = score(written, tried(written, numbered("cat", 10), lost=[*numbered("cat", 2), "dog 0"]))
    assert (found.values["written_matching"], found.values["written_near"]) == (8, 9)
    assert (found.values["written_precision"], found.values["written_near_rate"]) == (1, 0)
    assert found.values["written_failed"] == found.values["written_failed_no_evidence"] == 3
    failed = score(written, tried(written, [], lost=numbered("cat", 6)))
    assert kind_of(failed) == "too_few_texts"
    assert "4 matching texts and 10 near misses were run on the subject, of 10 and 10" in failed.failure.message  # type: ignore[union-attr]
    assert kind_of(score(written, [])) == "no_evidence"  # the stage was given up


def test_other_labels_texts_are_not_taken() -> None:
    written, _ = write(GOOD)
    assert kind_of(score(None, [])) == "no_evidence"
    assert kind_of(score(written.model_copy(update={"explainer": "other"}), tried(written, []))) == "no_evidence"
    assert kind_of(score(written.model_copy(update={"scorer": "other"}), tried(written, []))) == "no_evidence"
    assert kind_of(score(written, tried(written, []), latent=2)) == "dead"
    missing = run(WrittenScorer().score(None, evidence_of(STORE)))
    assert kind_of(missing) == "no_explanation"


def test_it_is_planned_for_labels_and_not_for_shuffled_ones() -> None:
    config = {
        "subject": {"model": "m"}, "coders": [{"path": "c"}], "corpus": {"path": "t"}, "latents": "0:50",
        "explainers": [{"kind": "max_activating"}], "scorers": [{"kind": "written"}], "controls": {"random_directions": 3},
        "endpoints": [{"kind": "scripted", "model": "m", "replies": ["x"]}],
    }  # fmt: skip
    from autointerp.config import parse_config

    lines = {line.what: line.calls for line in plan_run(parse_config(config, "test")).lines if "written" in line.what}
    assert lines == {"written": 50, "written, directions": 3}


def test_it_compares_no_labels() -> None:
    explainers: list[Explainer] = [
        parse_component("explainers", {"kind": k}) for k in ("max_activating", "contrastive")
    ]
    scorers = [WrittenScorer(), DetectionScorer()]
    chosen = comparing_scorer(explainers, scorers, "best", "")
    assert isinstance(chosen, DetectionScorer)
    with pytest.raises(ConfigError, match="on the choose side"):
        comparing_scorer(explainers, scorers, "best", "written")
    with pytest.raises(ConfigError, match="no scorer judges texts"):
        comparing_scorer(explainers, scorers[:1], "best", "")


def test_more_texts_needed_than_asked_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="min_texts is 5, and 4 matching texts and 10 near misses are asked"):
        parse_component("scorers", {"kind": "written", "matching": 4})


@pytest.mark.parametrize(("first", "second"), [(10, 10), (5, 12)])
def test_intervals_cover_at_least_as_often_as_they_say(first: int, second: int) -> None:
    """Exact chances of every outcome: of the rates at least 95%, of their difference about as much."""
    one = [rate(hits, first) for hits in range(first + 1)]
    other = [rate(hits, second) for hits in range(second + 1)]
    both = [[difference(a, b) for b in other] for a in one]
    for p, q in product(np.linspace(0.01, 0.99, 15), repeat=2):
        chance_p = [comb(first, k) * p**k * (1 - p) ** (first - k) for k in range(first + 1)]
        chance_q = [comb(second, k) * q**k * (1 - q) ** (second - k) for k in range(second + 1)]
        assert sum(c for c, a in zip(chance_p, one, strict=True) if a.low <= p <= a.high) >= 0.95
        held = sum(
            chance_p[i] * chance_q[j]
            for i in range(first + 1)
            for j in range(second + 1)
            if both[i][j].low <= p - q <= both[i][j].high
        )
        assert held >= 0.94
    low, high = beta.ppf([0.025, 0.975], [7, 8], [4, 3])
    assert tuple(rate(7, 10)) == pytest.approx((0.7, low, high))
    apart = difference(rate(10, 10), rate(0, 10))
    assert apart.value == apart.high == 1
    assert apart.low == pytest.approx(1 - hypot(1 - rate(10, 10).low, rate(0, 10).high))


def test_needs_are_declared(world: Path) -> None:
    [need] = WrittenScorer(endpoint="judge").llm_needs()
    assert (need.endpoint, need.prompts, need.capabilities) == ("judge", ("written",), frozenset())
    config = world / "identity.toml"
    config.write_text(CONFIG.replace("URL", "http://127.0.0.1:1/v1") + COMPONENTS)
    assert load_config(config).prompt_hashes()["written"] == load_prompt("written").hash
    assert (
        len(load_prompt("written").system.strip())
        + sum(len(s.user) + len(s.answer) for s in load_prompt("written").shots)
        < 2_400
    )  # static text is read with every call
