"""What [corpus] asks for: refused before anything is written, or done by the tokenize stage, once for all runs on a text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autointerp.config import load_config
from autointerp.pipeline.stage import ChunkSpec
from autointerp.pipeline.stages.tokenize import Tokenize, corpus_spec
from autointerp.pipeline.starting import start_run
from sae_core.errors import InputError
from sae_core.readers import jsonl
from sae_core.tokens import TokenCorpus
from tests import planted_world

CONFIG = """
[subject]
model = "subject"
[[coders]]
path = "coder"
[corpus]
path = "corpus.jsonl"
[extraction]
num_tokens = 3000
context_length = 64
"""
EOS = "return"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A planted world with a cache of its own."""
    planted_world.build(tmp_path, num_documents=60)
    (tmp_path / "run.toml").write_text(CONFIG)
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    return tmp_path


def settings(world: Path, **values: str) -> None:
    """Set what the subject's tokenizer says of itself."""
    path = world / "subject" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def corpus_of(world: Path, out: str, *sets: str) -> TokenCorpus:
    context = start_run(load_config(world / "run.toml", sets), out, world / out).context
    told: list[int] = []
    Tokenize().run(context, ChunkSpec(0), told.append)
    assert told[-1] == context.config.extraction.num_tokens
    return context.corpus


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["corpus.packed=true"],
            r"corpus\.packed joins documents by the EOS, and the tokenizer of the subject .* has none",
        ),
        (["corpus.messages_field=messages", "corpus.path=chats.jsonl"], r"has no chat template"),
        (["corpus.tokens_field=ids"], r"has no token ids under 'ids' \(it has 'text'\): set corpus\.tokens_field"),
        (["corpus.path=two", "corpus.split=dev"], r"corpus\.split is 'dev', and .* has no such split"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(world: Path, sets: list[str], message: str) -> None:
    (world / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "w1 w2"}]}\n')
    (world / "two").mkdir()
    (world / "two" / "train.jsonl").write_text('{"text": "w1 w2"}\n')
    with pytest.raises(InputError, match=message) as caught:
        start_run(load_config(world / "run.toml", sets), "x", world / "out")
    assert "\n" not in str(caught.value)
    assert not (world / "out").exists()


def test_a_second_run_reads_no_text(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = jsonl.read

    def counted(file: Any, field: Any) -> Iterator[Any]:
        reads.append(file.name)
        return read(file, field)

    first = corpus_of(world, "one")
    monkeypatch.setattr(jsonl, "read", counted)
    context = start_run(load_config(world / "run.toml"), "two", world / "two").context
    reads.clear()  # the start looks whether there is a document
    Tokenize().run(context, ChunkSpec(0), lambda done: None)
    assert not reads
    assert context.corpus.fingerprint == first.fingerprint
    assert (world / "one/corpus/tokens.bin").samefile(world / "two/corpus/tokens.bin")


def test_packed_and_always_or_never_a_bos(world: Path) -> None:
    settings(world, eos_token=EOS)
    eos, bos = planted_world.token_id(EOS), planted_world.token_id(planted_world.BOS)
    plain, packed = corpus_of(world, "plain"), corpus_of(world, "packed", "corpus.packed=true")
    assert packed.num_contexts < plain.num_contexts
    assert packed.num_tokens == plain.num_tokens == 3000
    rows = [packed.context(c).tolist() for c in range(packed.num_contexts)]
    assert {row[0] for row in rows} == {bos}
    assert sum(len(row) == 64 for row in rows) >= len(rows) - 3
    separators = sum(row.count(eos) for row in rows) - sum(
        plain.context(c).tolist().count(eos) for c in range(plain.num_contexts)
    )
    assert 0 < packed.num_documents - separators <= 3 + sum(1 for c in _last_of_documents(plain) if c == eos)
    never = corpus_of(world, "never", "corpus.bos=never")
    assert bos not in {int(i) for i in never.tokens[:]}
    assert corpus_of(world, "always", "corpus.bos=always").fingerprint == plain.fingerprint


def _last_of_documents(corpus: TokenCorpus) -> list[int]:
    """The last token of each document."""
    last = {int(d): int(corpus.context(c)[-1]) for c, d in enumerate(corpus.context_document)}
    return list(last.values())


def test_conversations(world: Path) -> None:
    settings(world, chat_template="{% for m in messages %}{{ m.content }} {% endfor %}")
    rows = [
        [{"role": "user", "content": f"w{n % 19} w{n // 19 % 19}"}, {"role": "assistant", "content": "( self )"}]
        for n in range(300)
    ]
    (world / "chats.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    sets = ["corpus.messages_field=messages", "corpus.path=chats.jsonl", "extraction.num_tokens=1000"]
    corpus = corpus_of(world, "out", *sets)
    words = [planted_world.VOCABULARY[i] for i in corpus.context(1)]
    assert words == [planted_world.BOS, "w1", "w0", "(", "self", ")"]


def test_the_settings_reach_the_reader(world: Path) -> None:
    sets = [
        "corpus.tokens_field=ids",
        "corpus.split=test",
        "corpus.subset=en",
        "corpus.packed=true",
        "corpus.revision=v1",
        "corpus.tokens_per_document=7",
        "corpus.suffixes=['.jsonl']",
        "seed=4",
    ]
    spec = corpus_spec(load_config(world / "run.toml", sets))
    assert spec.field == ("tokens", "ids")
    assert (spec.split, spec.subset, spec.packed, spec.revision) == ("test", "en", True, "v1")
    assert (spec.tokens_per_document, spec.suffixes, spec.seed, spec.num_tokens) == (7, (".jsonl",), 4, 3000)
    assert corpus_spec(load_config(world / "run.toml")).field == ("text", "text")
