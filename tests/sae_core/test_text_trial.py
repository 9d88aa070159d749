"""Texts run alone: the planted world's meanings are the truth, hostile texts end nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from sae_core.attachment import AttachedCoder, attach
from sae_core.errors import InputError, MissingFileError
from sae_core.subject import SubjectModel
from sae_core.text_trial import MOST_TOKENS, try_texts
from sae_core.tried_texts import load_tried_texts, save_tried_texts
from tests.planted_world import BOS, CONTEXT, MEANING, VOCABULARY, token_id
from tests.sae_core.test_extraction import attached, subject, world  # noqa: F401
from tests.sae_core.test_lens import coder_on
from tests.sae_core.tiny_families import VOCAB, tiny_family

TEXTS = ["( self 3", "def", "w1 ( w2 self ( self cls 7 return", "9", "self self zzz", "w0 w4 w9 w13"]


def test_activations_are_the_meanings(subject: SubjectModel, attached: AttachedCoder) -> None:  # noqa: F811
    wanted = {latent: [(1 + i % 2, text) for i, text in enumerate(TEXTS)] for latent in (9, 0, 1, 2, 8)}
    for batch_tokens in (8192, 12):
        tried = try_texts(subject, attached, wanted, batch_tokens=batch_tokens)
        assert [one.latent for one in tried] == sorted(latent for latent in wanted for _ in TEXTS)
        for number, one in enumerate(tried):
            assert one.text == TEXTS[number % len(TEXTS)]
            assert one.round == 1 + number % len(TEXTS) % 2
            words = [BOS, *one.text.split()]
            assert [VOCABULARY[i] for i in one.token_ids] == words[1:]
            truth = [MEANING[one.latent](words, i) for i in range(1, len(words))]
            np.testing.assert_allclose(one.activations, truth, atol=1e-3)
            assert one.fires == any(truth)


def test_hostile_texts_give_no_tokens_or_a_cut(subject: SubjectModel, attached: AttachedCoder, tmp_path: Path) -> None:  # noqa: F811
    hostile = ["", " \n\t ", "9 " * 100_000, "\x00", "9 \ud800 9", f"9 {BOS} 9", "9" * 1_000_000]
    tried = try_texts(subject, attached, {0: [(1, text) for text in hostile], 3: []})
    assert [one.text for one in tried] == hostile
    assert len(tried[0].token_ids) == len(tried[1].token_ids) == 0
    assert not tried[0].fires
    assert len(tried[2].token_ids) == CONTEXT - 1  # the subject's longest context, less the BOS
    np.testing.assert_allclose(tried[2].activations, 1.9, atol=1e-3)
    assert len(tried[3].token_ids) == 1
    assert tried[4].activations[[0, -1]] == pytest.approx(1.9, abs=1e-3)
    assert tried[5].token_ids[1] == token_id(BOS)
    assert tried[5].activations[1] == 0
    save_tried_texts(tmp_path / "tried.json", tried)
    back = load_tried_texts(tmp_path / "tried.json")
    for one, other in zip(tried, back, strict=True):
        assert (one.latent, one.round, one.text) == (other.latent, other.round, other.text)
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_array_equal(one.activations, other.activations)
        assert other.token_ids.dtype == np.int32
        assert other.activations.dtype == np.float32
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tried.json"]


def test_a_long_text_is_cut_and_a_subject_without_bos_reads_it_bare(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_family("llama")
    on_tiny = attach(tiny, coder_on(("layers.1",)))
    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    monkeypatch.setattr(tiny, "tokenizer", tokenizer)
    for one in try_texts(tiny, on_tiny, {4: [(1, "t1"), (2, "t5 t6 t7 t8")]}):
        ids = [int(word[1:]) for word in one.text.split()]
        assert one.token_ids.tolist() == ids
        hidden = tiny.capture(torch.tensor([ids]), on_tiny.read)[on_tiny.read[0]][0]
        np.testing.assert_allclose(one.activations, on_tiny.coder.encode(hidden)[:, 4].numpy(), atol=1e-4)
    # a special token takes the BOS's place, and one that a text spells out counts for nothing
    monkeypatch.setattr(tiny, "special_ids", frozenset({3}))
    texts = ["t5 t3 t6", "t3 t3 t1"]
    fires = 0
    for one in try_texts(tiny, on_tiny, {latent: [(1, text) for text in texts] for latent in range(12)}):
        ids = [3, *(int(word[1:]) for word in one.text.split())]
        hidden = tiny.capture(torch.tensor([ids]), on_tiny.read)[on_tiny.read[0]][0]
        truth = on_tiny.coder.encode(hidden)[1:, one.latent].numpy()
        fires += int((truth[one.token_ids == 3] != 0).sum())
        np.testing.assert_allclose(one.activations, np.where(one.token_ids == 3, 0, truth), atol=1e-4)
    assert fires
    monkeypatch.setattr(tiny, "max_context", 1000)
    assert len(try_texts(tiny, on_tiny, {0: [(1, "t1 " * 300)]})[0].token_ids) == MOST_TOKENS


def test_activations_that_are_not_finite_leave_no_tokens(
    subject: SubjectModel,  # noqa: F811
    attached: AttachedCoder,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capture = subject.capture

    def broken(tokens: torch.Tensor, places: object) -> object:
        found = capture(tokens, places)  # type: ignore[arg-type]
        for value in found.values():
            value[(tokens == token_id("zzz")).any(dim=1)] = torch.nan
        return found

    monkeypatch.setattr(subject, "capture", broken)
    tried = try_texts(subject, attached, {0: [(1, "9 9"), (1, "9 zzz")]})
    assert len(tried[0].token_ids) == 2
    assert tried[0].fires
    assert len(tried[1].token_ids) == 0


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        load_tried_texts(tmp_path / "none.json")
    for content in (
        b"{",
        b"[]",
        b'{"kind": "other"}',
        "ä".encode(),
        b'{"kind":"tried texts","format_version":9,"texts":[]}',
    ):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(InputError):
            load_tried_texts(tmp_path / "bad.json")
