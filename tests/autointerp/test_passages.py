"""Searches on a run of the planted world, whose latents' triggers are known: in this process, in a child, on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from autointerp.passages import (
    ContrastQuestion,
    SubjectProcess,
    TextAnswer,
    TextQuestion,
    read_passages,
    search_contrast,
    search_text,
)
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.finding import find_run
from autointerp.pipeline.starting import open_run
from autointerp.review import record_review
from sae_core.errors import InputError, MissingFileError, UnknownNameError
from tests import planted_world
from tests.autointerp.test_cli import Shell, shell  # noqa: F401
from tests.planted_world import BOS, MEANING, NUM_LATENTS

ROOT = Path(__file__).parents[2]
CONFIG = """
latents = "0:12"
[subject]
model = "subject"
[[coders]]
path = "coder"
name = "planted"
[corpus]
path = "corpus.jsonl"
[extraction]
num_tokens = 4000
context_length = 32
window_length = 16
[controls]
random_directions = 4
[[explainers]]
kind = "pattern"
[[scorers]]
kind = "pattern"
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("world")
    planted_world.build(world, num_documents=80)
    (world / "run.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "autointerp.cli", "run", str(world / "run.toml"), "--out", str(world / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return world / "out"


@pytest.fixture(scope="module")
def context(out: Path) -> RunContext:
    store, run_id = find_run(str(out))
    return open_run(store, run_id, out)


def passages(number: int, word: str | None, seed: int) -> tuple[str, ...]:
    """Of a dozen random words, none of them ``def``; ``word`` somewhere in each."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        words = [f"w{i}" for i in generator.integers(20, size=12)]
        if word is not None:
            words.insert(int(generator.integers(1, 12)), word)
        found.append(" ".join(words))
    return tuple(found)


def planted(text: str) -> dict[int, dict[int, float]]:
    """By latent its activations at the tokens of a text."""
    words = [BOS, *text.split()]
    found: dict[int, dict[int, float]] = {}
    for latent in range(NUM_LATENTS):
        for place in range(1, len(words)):
            if value := MEANING[latent](words, place):
                found.setdefault(latent, {})[place - 1] = value
    return found


def test_a_text_brings_up_the_latents_that_are_known_to_fire_on_it(context: RunContext) -> None:
    texts = ("w3 def w19 w19", "( self 4")
    answer = search_text(context, TextQuestion(texts=texts, top=100))
    assert [passage.tokens for passage in answer.passages] == [tuple(text.split()) for text in texts]
    assert answer.num_latents == NUM_LATENTS
    expected = [planted(text) for text in texts]
    fires = set(expected[0]) | set(expected[1])
    assert {found.latent for found in answer.latents} == fires
    assert answer.num_firing == len(fires)
    largest = context.exemplars("planted").statistics.max_activation
    for found in answer.latents:
        assert [firing.passage for firing in found.firing] == [n for n in (0, 1) if found.latent in expected[n]]
        for firing in found.firing:
            truth = expected[firing.passage][found.latent]
            assert firing.tokens == tuple(truth)
            assert firing.values == pytest.approx(list(truth.values()), abs=1e-2)
        assert found.maximum == pytest.approx(
            max(max(one.values()) for one in (e.get(found.latent, {0: 0}) for e in expected)), abs=1e-2
        )
        assert found.corpus_maximum == pytest.approx(float(largest[:, found.latent].max()))
        assert found.relative == pytest.approx(found.maximum / float(largest[:, found.latent].max()))
        assert (found.label is not None) == (found.latent < 12), "only these are labelled"
    shares = [round(found.relative or 0, 4) for found in answer.latents]
    assert shares == sorted(shares, reverse=True)
    # 4 is 1.4 of at most 1.9; by the activation itself it comes first
    assert answer.latents[-1].latent == 0
    by_size = search_text(context, TextQuestion(texts=texts, order="maximum", top=1))
    assert [found.latent for found in by_size.latents] == [0]
    assert TextAnswer.model_validate_json(answer.model_dump_json()) == answer


def test_a_passage_with_def_brings_up_its_latent_and_says_what_was_cut(context: RunContext) -> None:
    long = "w19 " * 30 + "def zzz zzz"
    answer = search_text(context, TextQuestion(texts=(f"{BOS} def", long)))
    of_def = next(found for found in answer.latents if found.latent == 5)
    assert of_def.label is not None
    assert "def" in of_def.label
    assert [(firing.passage, firing.tokens) for firing in of_def.firing] == [(0, (1,)), (1, (30,))]
    assert answer.passages[0].not_counted == (0,)
    assert answer.passages[0].cut == ()
    assert answer.passages[1].cut == ("zzz", "zzz"), "a context of 32 tokens holds 31 beside the BOS"
    assert 4 not in {found.latent for found in answer.latents}


def test_a_run_without_exemplars_knows_no_shares(out: Path, context: RunContext, tmp_path: Path) -> None:
    store, run_id = find_run(str(out))
    bare = open_run(store, run_id, tmp_path)
    bare.adopt_subject(context)
    answer = search_text(bare, TextQuestion(texts=("w3 def 9",)))
    assert answer.passages[0].tokens == ("w3", "def", "9")
    assert {found.relative for found in answer.latents} == {None}
    assert answer.latents[0].latent == 0, "the largest activation"
    store.close()


def test_a_contrast_finds_the_planted_latent_first(context: RunContext) -> None:
    question = ContrastQuestion(with_concept=passages(12, "def", 0), without_concept=passages(15, None, 1), top=100)
    answer = search_contrast(context, question)
    first = answer.latents[0]
    assert (first.latent, first.auroc, first.firing_with, first.firing_without) == (5, 1.0, 12, 0)
    assert first.q < 0.05
    assert first.mean_with == pytest.approx(1.0, abs=1e-3)
    assert first.auroc_low > 0.75
    assert (answer.num_with, answer.num_without, answer.num_latents) == (12, 15, NUM_LATENTS)
    assert answer.num_silent == NUM_LATENTS - len(answer.latents)
    sure = [(abs(one.auroc - 0.5), -one.p) for one in answer.latents]
    assert sure == sorted(sure, reverse=True)
    assert answer.num_significant == sum(one.q < 0.05 for one in answer.latents)
    # every latent of the coder is a test, also those that are silent
    assert first.q == pytest.approx(first.p * NUM_LATENTS)
    exchanged = search_contrast(
        context, ContrastQuestion(with_concept=question.without_concept, without_concept=question.with_concept)
    ).latents[0]
    assert (exchanged.latent, exchanged.auroc, exchanged.p) == (5, 0.0, first.p)
    assert exchanged.auroc_high == pytest.approx(1 - first.auroc_low)


def test_a_contrast_of_nothing_finds_nothing_and_the_mean_counts_tokens(context: RunContext) -> None:
    nothing = search_contrast(context, ContrastQuestion(with_concept=("zzz",) * 3, without_concept=("zzz",) * 3))
    assert nothing.num_significant == 0
    assert [(one.latent, one.auroc, one.p, one.q) for one in nothing.latents] == [(4, 0.5, 1, 1), (8, 0.5, 1, 1)]
    # once in two tokens against twice in eight: the same maximum, another mean
    often, seldom = ("w19 def",) * 4, ("w19 def w19 w19 w19 w19 w19 def",) * 4
    for measure, auroc, mean in (("max", 0.5, 1.0), ("mean", 1.0, 0.5)):
        question = ContrastQuestion(with_concept=often, without_concept=seldom, measure=measure, top=50)  # type: ignore[arg-type]
        one = next(one for one in search_contrast(context, question).latents if one.latent == 5)
        assert (one.auroc, one.mean_with) == (auroc, pytest.approx(mean, abs=1e-3))
    cut = search_contrast(context, ContrastQuestion(with_concept=("def " * 33, "def"), without_concept=("w1",) * 2))
    assert [(one.passage, one.num_tokens) for one in cut.cut_with] == [(0, 2)]
    assert cut.cut_without == ()
    assert (cut.tokens_with, cut.tokens_without) == (31 + 1, 2)


def test_what_cannot_be_asked_is_a_sentence(context: RunContext) -> None:
    two = ("def", "w1")
    for question in (
        TextQuestion(texts=()),
        TextQuestion(texts=("def",) * 65),
        TextQuestion(texts=("def", " ")),
        TextQuestion(texts=("d" * 20_001,)),
        TextQuestion(texts=("def",), top=0),
        TextQuestion(texts=(BOS,)),
        TextQuestion(texts=("def",), source="planetd"),
        ContrastQuestion(with_concept=("def",), without_concept=two),
        ContrastQuestion(with_concept=two, without_concept=("def",) * 401),
        ContrastQuestion(with_concept=two, without_concept=("", "def")),
        ContrastQuestion(with_concept=("d" * 20_000,) * 300, without_concept=two),
    ):
        with pytest.raises(InputError) as caught:
            search_text(context, question) if isinstance(question, TextQuestion) else search_contrast(context, question)
        assert str(caught.value).count("\n") == 0
        assert isinstance(caught.value, UnknownNameError) == (question.source is not None)


def test_a_rejected_label_is_not_shown(context: RunContext) -> None:
    before = search_text(context, TextQuestion(texts=("return",))).latents
    assert {found.latent: found.label is not None for found in before}[6]
    record_review(context.store, context.run_id, "planted", 6, "reject", None, "somebody")
    after = search_text(context, TextQuestion(texts=("return",))).latents
    assert {found.latent: found.label for found in after}[6] is None


def test_files_hold_a_passage_a_line(tmp_path: Path) -> None:
    lines, rows = tmp_path / "a.txt", tmp_path / "a.jsonl"
    lines.write_bytes("\ufeffdef w1\r\n\n  \n w2 \u2028 w3\n".encode())
    assert read_passages(lines) == ["def w1", " w2 \u2028 w3"]
    rows.write_text('{"text": "a\\nb", "n": 1}\n\n{"text": "c"}\n')
    assert read_passages(rows) == ["a\nb", "c"]
    for content in (b"", b"{", b"[]", b'{"text": 3}', b'{"txt": "a"}', b"\xff", b"[" * 100_000):
        rows.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_passages(rows)
        assert str(caught.value).count("\n") == 0
    with pytest.raises(MissingFileError):
        read_passages(tmp_path / "none")


def test_the_command_line(shell: Shell, out: Path, tmp_path: Path) -> None:  # noqa: F811
    said = shell("search", out, "w3 def", "--json", "--top", "2")
    assert said.code == 0, said.err
    answer = json.loads(said.out)
    assert len(answer["latents"]) == 2
    assert answer["passages"][0]["tokens"] == ["w3", "def"]
    said = shell("search", out, "w3 def [bold] [/red]")
    assert said.code == 0, said.err
    assert "««def»»" in said.out
    for number, word in enumerate(("def", None)):
        (tmp_path / f"{number}.txt").write_text("\n".join(passages(8, word, number)))
    said = shell("contrast", out, tmp_path / "0.txt", tmp_path / "1.txt")
    assert said.code == 0, said.err
    rows = [line.split() for line in said.out.splitlines()]
    heads = next(number for number, row in enumerate(rows) if row[:2] == ["latent", "AUROC"])
    assert rows[heads + 1][:2] == ["5", "1.00"]
    said = shell("contrast", out, tmp_path / "0.txt", tmp_path / "1.txt", "--json", "--measure", "mean")
    assert json.loads(said.out)["latents"][0]["latent"] == 5
    (tmp_path / "long.txt").write_text(
        "\n".join(" ".join(pair) for pair in zip(passages(8, None, 4), passages(8, None, 5), strict=True))
    )
    for file, uneven in (("long.txt", True), ("0.txt", False)):
        said = shell("contrast", out, tmp_path / file, tmp_path / "1.txt")
        assert ("of like length" in " ".join(said.out.split())) == uneven
    said = shell("search", out, "--file", tmp_path / "0.txt", "--json")
    assert len(json.loads(said.out)["passages"]) == 8
    for wrong in (
        ("search", out),
        ("search", out, "def", "--file", tmp_path / "0.txt"),
        ("search", out, " "),
        ("search", out, "def", "--source", "planetd"),
        ("search", out, "def", "--top", "0"),
        ("contrast", out, tmp_path / "0.txt", tmp_path / "none.txt"),
    ):
        said = shell(*wrong)
        assert said.code == 2
        assert said.out == ""
        assert said.err.count("\n") == 1


def test_a_child_gives_the_same_answers_until_nobody_asks(out: Path, context: RunContext) -> None:
    text = TextQuestion(texts=("w3 def \ud800", "( self 4"), top=5)
    contrast = ContrastQuestion(with_concept=passages(5, "def", 2), without_concept=passages(5, None, 3))
    with SubjectProcess(str(out), idle_s=2.0) as process:
        found: list[object] = []
        threads = [threading.Thread(target=lambda: found.append(process.ask(text))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [search_text(context, text)] * 2
        assert process.ask(contrast) == search_contrast(context, contrast)
        with pytest.raises(UnknownNameError, match="planetd"):
            process.ask(TextQuestion(texts=("def",), source="planetd"))
        first = process.pid
        child = process._child
        assert child is not None
        deadline = time.monotonic() + 30
        while not child.has_ended and time.monotonic() < deadline:
            time.sleep(0.05)
        assert child.process.returncode == 0, "it ends itself"
        assert process.ask(text) == found[0]
        assert process.pid != first


def test_asking_loads_no_torch_here() -> None:
    code = (
        "import autointerp.passages, autointerp.report.passages, autointerp.commands.searching, sys\n"
        "print(sorted({'torch', 'transformers', 'celery'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "[]", done.stderr
