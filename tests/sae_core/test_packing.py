"""Packed contexts against the documents that went in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_core.document import Document
from sae_core.errors import CorpusError
from sae_core.hashing import hash64
from sae_core.packing import Packer
from sae_core.tokens import CorpusSpec, TokenCorpus, build_corpus, sides_of
from tests.sae_core.corpus_world import BOS, EOS, TEXTS, json_lines, letters

PACKED_EOS = 999


class Given(NamedTuple):
    ids: list[int]
    side: int


documents = st.lists(
    st.builds(Given, st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(0, 2)), max_size=40
)


@given(documents, st.integers(2, 12))
def test_every_token_stands_once_in_full_contexts_of_its_side(given_documents: list[Given], length: int) -> None:
    packer = Packer(length, PACKED_EOS)
    cut: dict[int, list[list[int]]] = {0: [], 1: [], 2: []}
    places: list[tuple[int, int]] = []
    numbered = [[100 * (n + 1) + i for i, _ in enumerate(d.ids)] for n, d in enumerate(given_documents)]
    firsts: list[tuple[int, int, list[int]]] = []

    def take(side: int, ids: list[int], document: int, digest: int, offset: int) -> None:
        cut[side].append(ids)
        places.append((digest, offset))
        firsts.append((document, offset, ids))

    for n, document in enumerate(given_documents):
        # a number for each place in each document, so that a token tells where it comes from
        for c in packer.add(np.asarray(_marked(numbered[n]), dtype=np.int32), n, n + 7, document.side):
            take(document.side, c.ids.tolist(), c.document, c.digest, c.offset)
    for side, c in packer.rest():
        take(side, c.ids.tolist(), c.document, c.digest, c.offset)
    for side, contexts in cut.items():
        of_side = [_marked(numbered[n]) for n, d in enumerate(given_documents) if d.side == side]
        joined = [token for ids in of_side for token in [PACKED_EOS, *ids]][1:]
        assert [token for ids in contexts for token in ids] == joined
        assert all(len(ids) == length for ids in contexts[:-1])
        assert all(1 <= len(ids) <= length for ids in contexts)
    assert len(set(places)) == len(places)
    for number, offset, ids in firsts:
        first_of_text = next(token for token in ids if token != PACKED_EOS)
        assert first_of_text == _marked(numbered[number])[offset]


def _marked(ids: list[int]) -> list[int]:
    return [1000 + token for token in ids]


def test_an_eos_that_is_there_is_not_doubled() -> None:
    packer = Packer(3, PACKED_EOS)
    rows = ([1, 2, PACKED_EOS], [3], [4, 5])
    full = [c.ids.tolist() for ids in rows for c in packer.add(np.asarray(ids, dtype=np.int32), 0, 0, 0)]
    assert full == [[1, 2, PACKED_EOS], [3, PACKED_EOS, 4]]
    assert [c.ids.tolist() for _, c in packer.rest()] == [[5]]


def packed(tmp_path: Path, length: int, bos: int | None, tokens: int | None = None) -> TokenCorpus:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(TEXTS))
    total = sum(len(text.split()) for text in TEXTS)
    spec = CorpusSpec(str(path), tokens or total, length, "body", packed=True, seed=3)
    return build_corpus(spec, letters(), bos, tmp_path / f"out-{length}-{bos}", eos_id=EOS)


@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("length", [4, 7, 64])
def test_a_packed_corpus(tmp_path: Path, length: int, bos: int | None) -> None:
    corpus = packed(tmp_path, length, bos)
    digests = [Document("", text).digest for text in TEXTS]
    sides = sides_of(np.asarray(digests), 3)
    joined: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for ordinal in range(corpus.num_contexts):
        row = corpus.context(ordinal).tolist()
        side = int(corpus.context_side[ordinal])
        if bos is not None:
            assert row.pop(0) == BOS
        assert BOS not in row
        joined[side] += row
        text = [token for token in row if token != EOS]
        document = int(corpus.context_document[ordinal])
        assert text[0] == document + 1
        assert {int(sides[token - 1]) for token in text} == {side}
    for side, tokens in joined.items():
        expected = [token for n in range(20) if sides[n] == side for token in [EOS, *[n + 1] * len(TEXTS[n].split())]]
        assert tokens == expected[1:]
    lengths = np.diff(corpus.context_start)
    assert (lengths == length).sum() >= len(lengths) - 3
    assert corpus.num_documents == 20
    assert corpus.num_tokens == sum(len(text.split()) for text in TEXTS)
    assert len(set(corpus.context_uid.tolist())) == corpus.num_contexts
    assert corpus.context_uid[0] == hash64(digests[int(corpus.context_document[0])], 0)


def test_packing_is_refused_without_an_eos(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a b c"}) + "\n")
    spec = CorpusSpec(str(tmp_path / "a.jsonl"), 3, 8, packed=True)
    with pytest.raises(CorpusError, match=r"has none: set corpus.packed to false"):
        build_corpus(spec, letters(), None, tmp_path / "out")
    with pytest.raises(CorpusError, match=r"must hold two tokens beside the BOS"):
        build_corpus(CorpusSpec(spec.path, 3, 2, packed=True), letters(), BOS, tmp_path / "out", eos_id=EOS)
