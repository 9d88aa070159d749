"""Documents and contexts against files written by hand."""

from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from sae_core.documents import PYTHON_STDLIB, read_documents
from sae_core.errors import CorpusError, MissingFileError
from sae_core.hashing import hash64
from sae_core.records import Side
from sae_core.tokens import CorpusSpec, CorpusStopped, TokenCorpus, build_corpus, sides_of
from tests.sae_core.corpus_world import BOS, letters

TEXTS = [f"{chr(97 + i)} " * (5 + i) for i in range(20)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    built = Tokenizer(models.WordLevel({chr(97 + i): i + 1 for i in range(20)} | {"?": 0}, unk_token="?"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return built


def test_every_form_gives_the_same_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in [*TEXTS, TEXTS[3], "  "]))
    pd.DataFrame({"body": [*TEXTS, TEXTS[3], None]}).to_parquet(tmp_path / "a.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, text in enumerate(TEXTS):
        (folder / f"{i}.txt").write_text(text)
    (folder / "copy.txt").write_text(TEXTS[0])
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    for path in (tmp_path / "a.jsonl", tmp_path / "a.parquet", folder):
        found = [d.text for d in read_documents(str(path), text_field="body")]
        assert sorted(found) == sorted(TEXTS), path
    assert [d.text for d in read_documents(str(tmp_path / "a.jsonl"), text_field="body")] == TEXTS


def test_contexts_hold_one_document_and_the_bos(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    total = sum(range(5, 25))
    corpus = build_corpus(CorpusSpec(str(path), total - 3, 8), tokenizer, 99, tmp_path / "out")
    rows = [corpus.context(c).tolist() for c in range(corpus.num_contexts)]
    assert all(row[0] == 99 and len(row) <= 8 and len(set(row[1:])) == 1 for row in rows)
    assert [row[1] - 1 for row in rows] == corpus.context_document.tolist()
    expected = [n for i in range(20) for n in [7] * ((5 + i) // 7) + [(5 + i) % 7] if n]
    expected[-1] = 0
    assert [len(row) - 1 for row in rows] == [n for n in expected if n]
    assert corpus.num_tokens == total - 3
    assert len(set(corpus.context_uid.tolist())) == corpus.num_contexts


def test_documents_are_cut_to_a_stretch_of_their_own(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    corpus = build_corpus(CorpusSpec(str(path), 20 * 5, 8, tokens_per_document=5), tokenizer, None, tmp_path / "out")
    assert np.bincount(corpus.context_document).tolist() == [1] * 20
    assert np.diff(corpus.context_start).tolist() == [5] * 20


def test_a_lone_text_is_split_by_context(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("a b c d " * 500)
    corpus = build_corpus(CorpusSpec(str(tmp_path / "a.txt"), 2000, 8), tokenizer, None, tmp_path / "out")
    assert corpus.num_documents == corpus.num_contexts == 250
    assert set(corpus.context_side.tolist()) == {0, 1, 2}


def test_the_fingerprint_follows_text_and_cut(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "a.jsonl"

    def fingerprint(texts: list[str], length: int) -> str:
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        return build_corpus(CorpusSpec(str(path), 50, length), tokenizer, None, tmp_path / "out").fingerprint

    assert fingerprint(TEXTS, 8) == fingerprint(TEXTS, 8)
    assert len({fingerprint(TEXTS, 8), fingerprint(TEXTS, 9), fingerprint(TEXTS[::-1], 8)}) == 3


def test_refusals_name_the_remedy(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def build(path: Path | str, tokens: int = 100, field: str = "text") -> None:
        build_corpus(CorpusSpec(str(path), tokens, 8, text_field=field), tokenizer, None, tmp_path / "out")

    with pytest.raises(MissingFileError, match=r"corpus\.path is '.*nowhere\.jsonl', and there is no such file"):
        build(tmp_path / "nowhere.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(CorpusError, match="holds no text"):
        build(empty)
    short = tmp_path / "short.jsonl"
    short.write_text(json.dumps({"text": TEXTS[0]}) + "\n")
    with pytest.raises(
        CorpusError,
        match=r"gives 5 tokens and extraction\.num_tokens asks for 100: set extraction\.num_tokens to at most 5",
    ):
        build(short)
    with pytest.raises(CorpusError, match=r"line 1 has no text under 'body' \(it has 'text'\): set corpus.text_field"):
        build(short, field="body")
    short.write_text("{nonsense\n")
    with pytest.raises(CorpusError, match="line 1 is not JSON"):
        build(short)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(CorpusError, match="no file in it ends in"):
        build(tmp_path / "nothing")
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"a file that ends in \.txt"):
        build(tmp_path / "a.zip")


@pytest.mark.long
def test_the_standard_library_is_a_corpus() -> None:
    documents = read_documents(PYTHON_STDLIB, suffixes=(".py",), seed=1)
    names = [next(documents).name for _ in range(20)]
    assert all(name.endswith(".py") and "site-packages" not in name for name in names)
    assert names != sorted(names)
    again = read_documents(PYTHON_STDLIB, suffixes=(".py",), seed=1)
    assert names == [next(again).name for _ in range(20)]


@given(st.integers(0, 1000))
def test_sides_have_the_asked_shares(seed: int) -> None:
    sides = sides_of(np.arange(4000, dtype=np.int64), seed)
    shares = np.bincount(sides, minlength=3) / 4000
    np.testing.assert_allclose(shares, [0.4, 0.2, 0.4], atol=0.05)
    assert Side(int(sides[0])) == sides_of(np.arange(1, dtype=np.int64), seed)[0]


def test_hashes_do_not_collide_or_correlate() -> None:
    hashes = hash64(7, np.repeat(np.arange(300), 300), np.tile(np.arange(300), 300))
    assert len(np.unique(hashes)) == 90_000
    uniform = hashes.astype(float) / 2.0**64
    assert abs(np.corrcoef(uniform[:-1], uniform[1:])[0, 1]) < 0.02
    assert abs(uniform.mean() - 0.5) < 0.01


def test_a_lone_text_is_read_in_blocks_and_lost_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(str(i) for i in range(5000))
    (tmp_path / "a.txt").write_text(text)
    monkeypatch.setattr("sae_core.readers.text._BLOCK_CHARACTERS", 1000)
    blocks = list(read_documents(str(tmp_path / "a.txt")))
    assert len(blocks) > 20
    assert "".join(block.text for block in blocks) == text
    assert max(len(block.text) for block in blocks) <= 1010
    assert all(block.text.endswith(" ") and not block.known for block in blocks[:-1])


def test_text_that_is_no_unicode_is_met_in_a_sentence_or_mended(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(CorpusError, match="line 2 is not UTF-8"):
        list(read_documents(str(tmp_path / "latin.jsonl")))
    (tmp_path / "half.jsonl").write_text('{"text": "half a pair \\ud83d here"}\n')
    (document,) = read_documents(str(tmp_path / "half.jsonl"))
    assert document.text == "half a pair ? here"


def _array_of(corpus: TokenCorpus, name: str) -> list[int]:
    return [int(i) for i in np.asarray(getattr(corpus, name)[:])]


def test_a_corpus_is_followed_while_it_grows(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is open at any moment is the beginning of what there is in the end; the journal speaks of no more."""
    monkeypatch.setattr("sae_core.corpus_writer.JOURNAL_TOKENS", 40)
    path, out = tmp_path / "a.jsonl", tmp_path / "out"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    seen: list[tuple[int, dict[str, list[int]]]] = []
    names = ("tokens", "context_start", "context_document", "context_side", "context_uid")

    def follow(done: int) -> None:
        assert not TokenCorpus.exists(out)
        corpus = TokenCorpus.open_growing(out)
        if corpus is not None:
            assert not corpus.finished
            assert corpus.num_tokens <= done
            seen.append((corpus.num_contexts, {name: _array_of(corpus, name) for name in names}))

    assert TokenCorpus.open_growing(out) is None
    build_corpus(CorpusSpec(str(path), 280, 8), tokenizer, 99, out, follow)
    whole = TokenCorpus.open_growing(out)
    assert whole is not None
    assert whole.finished
    assert len({contexts for contexts, _ in seen}) > 3
    for _, arrays in seen:
        for name, values in arrays.items():
            assert values == _array_of(whole, name)[: len(values)], name
    kept = whole.context(3).tolist()
    build_corpus(CorpusSpec(str(path), 50, 9), tokenizer, None, out)
    assert whole.context(3).tolist() == kept, "a corpus built anew must not change under who has the old one open"


def test_an_old_word_of_a_corpus_that_is_begun_anew_is_not_believed(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process was killed, another begins anew: who has read the journal just before finds shorter arrays, or none."""
    monkeypatch.setattr("sae_core.corpus_writer.JOURNAL_TOKENS", 40)
    path, out = tmp_path / "a.jsonl", tmp_path / "out"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))

    def killed(done: int) -> None:
        if done > 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_corpus(CorpusSpec(str(path), 280, 8), tokenizer, 99, out, killed)
    assert TokenCorpus.open_growing(out) is not None
    side = (out / "context_side.bin").read_bytes()
    (out / "context_side.bin").write_bytes(side[:3])
    assert TokenCorpus.open_growing(out) is None
    (out / "context_side.bin").write_bytes(b"")
    assert TokenCorpus.open_growing(out) is None
    (out / "context_side.bin").unlink()
    assert TokenCorpus.open_growing(out) is None
    journal = out / "journal.json"
    journal.write_text(journal.read_text().replace('"format_version": 2', '"format_version": 1'))
    with pytest.raises(CorpusError, match="holds a corpus of format 1"):
        TokenCorpus.open_growing(out)


@pytest.mark.parametrize(("size", "width"), [(65_530, 2), (65_600, 4)])
def test_ids_take_two_bytes_where_they_fit(tmp_path: Path, size: int, width: int) -> None:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": f"w1 w{size - 1} w7"}) + "\n")
    corpus = build_corpus(CorpusSpec(str(tmp_path / "a.jsonl"), 3, 8), words, None, tmp_path / "out")
    assert (tmp_path / "out" / "tokens.bin").stat().st_size == 3 * width
    assert corpus.context(0).tolist() == [1, size - 1, 7]
    assert corpus.context(0).dtype == corpus.tokens[np.asarray([0, 2])].dtype == np.int32
    assert np.where([True, False], corpus.tokens[np.asarray([0, 1])], -1).tolist() == [1, -1]


def test_building_ends_where_the_caller_says_so(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path, out = tmp_path / "a.jsonl", tmp_path / "out"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    with pytest.raises(CorpusStopped):
        build_corpus(CorpusSpec(str(path), 250, 8), tokenizer, None, out, stop=stop)
    assert asked == 6

    def progress(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_corpus(CorpusSpec(str(path), 250, 8), tokenizer, None, out, progress)
    assert not TokenCorpus.exists(out)
    before = threading.active_count()
    assert build_corpus(CorpusSpec(str(path), 250, 8), tokenizer, None, out).num_tokens == 250
    assert threading.active_count() == before


def test_ready_ids_are_cut_like_text(tmp_path: Path) -> None:
    tokenizer = letters()
    rows = [tokenizer.encode(text).ids for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"ids": [BOS, *row]}) + "\n" for row in rows))
    text = build_corpus(CorpusSpec(str(tmp_path / "a.jsonl"), 280, 8), tokenizer, BOS, tmp_path / "1")
    spec = CorpusSpec(str(tmp_path / "b.jsonl"), 280, 8, tokens_field="ids")
    ids = build_corpus(spec, tokenizer, BOS, tmp_path / "2")
    for name in ("tokens", "context_start", "context_document"):
        assert _array_of(text, name) == _array_of(ids, name)
    never = build_corpus(spec, tokenizer, None, tmp_path / "3", leading_id=BOS)
    assert BOS not in _array_of(never, "tokens")
    kept = build_corpus(spec, tokenizer, None, tmp_path / "4")
    assert _array_of(kept, "tokens")[0] == BOS, "what is no BOS stays"
    few = Tokenizer(models.WordLevel({chr(97 + i): i for i in range(10)}, unk_token="a"))
    with pytest.raises(CorpusError, match=r"b.jsonl:1 holds the token id 22, and the subject's ids go from 0 to 9"):
        build_corpus(spec, few, None, tmp_path / "5")


def test_a_flat_array_has_no_documents(tmp_path: Path, tokenizer: Tokenizer) -> None:
    np.save(tmp_path / "a.npy", np.arange(2000, dtype=np.uint16) % 20)
    corpus = build_corpus(CorpusSpec(str(tmp_path / "a.npy"), 2000, 8), tokenizer, None, tmp_path / "out")
    assert corpus.num_documents == corpus.num_contexts == 250
    assert set(corpus.context_side.tolist()) == {0, 1, 2}


@given(st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=40), min_size=1, max_size=20), st.integers(2, 9))
def test_every_token_of_a_document_stands_once(rows: list[list[int]], length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        unique = list(dict.fromkeys(map(tuple, rows)))
        path = Path(folder) / "a.jsonl"
        path.write_text("".join(json.dumps({"ids": row}) + "\n" for row in rows))
        built = Tokenizer(models.WordLevel({chr(97 + i): i for i in range(20)}, unk_token="a"))
        spec = CorpusSpec(str(path), sum(map(len, unique)), length, tokens_field="ids")
        corpus = build_corpus(spec, built, 20, Path(folder) / "out")
        found: dict[int, list[int]] = {}
        for ordinal, document in enumerate(corpus.context_document.tolist()):
            row = corpus.context(ordinal).tolist()
            assert row[0] == 20
            assert len(row) <= length
            found.setdefault(document, []).extend(row[1:])
        assert [tuple(found[n]) for n in range(len(unique))] == unique
