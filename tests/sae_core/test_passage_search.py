"""Passages through the subject: a forward pass and a matrix product by hand are the truth, one passage after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from sae_core.attachment import AttachedCoder, attach
from sae_core.errors import InputError, NonFiniteError
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder
from sae_core.passage_search import measure_passages, passage_activations, tokenize_passages
from sae_core.passage_values import Measure, PassageActivations, ordered_activations, passage_values, reduced
from sae_core.subject import SubjectModel
from tests.planted_world import BOS, CONTEXT, MEANING, NUM_LATENTS, VOCABULARY, token_id
from tests.sae_core.test_extraction import attached, subject, world  # noqa: F401
from tests.sae_core.test_lens import coder_on
from tests.sae_core.tiny_families import VOCAB, tiny_family

TEXTS = [
    "( self 3",
    "def",
    "w1 ( w2 self ( self cls 7 return",
    "9",
    "self self zzz",
    "w0 w4 w9 w13",
    "def w1 ( def 2 2",
]


def named(texts: list[str]) -> list[tuple[str, str]]:
    return [(f"passage {n}", text) for n, text in enumerate(texts, start=1)]


def by_hand(subject: SubjectModel, attached: AttachedCoder, ids: list[int]) -> np.ndarray:  # noqa: F811
    """[T, L] the activations on one row of ids: a hook of our own, and the coder's formula."""
    caught: list[torch.Tensor] = []
    module = subject.model.get_submodule("transformer.h.0")
    handle = module.register_forward_hook(lambda _m, _a, out: caught.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        subject.model(torch.tensor([ids]))
    handle.remove()
    encoder = attached.coder.encoder
    assert isinstance(encoder, AffineEncoder)
    assert isinstance(encoder.activation, JumpReLU)
    before = caught[0].reshape(len(ids), -1) @ encoder.weight.T + encoder.bias
    return (before * (before > torch.as_tensor(encoder.activation.threshold))).numpy()


def dense(found: PassageActivations, passage: int, num_tokens: int, num_latents: int = NUM_LATENTS) -> np.ndarray:
    mine = found.passage == passage
    values = np.zeros((num_tokens, num_latents), dtype=np.float32)
    values[found.token[mine], found.latent[mine]] = found.value[mine]
    assert (values != 0).sum() == mine.sum(), "one entry for each"
    return values


@pytest.mark.parametrize("batch_tokens", [8192, 12])
def test_activations_are_those_by_hand_and_as_planted(
    subject: SubjectModel,  # noqa: F811
    attached: AttachedCoder,  # noqa: F811
    batch_tokens: int,
) -> None:
    passages = tokenize_passages(subject, named(TEXTS), subject.bos_id, CONTEXT)
    found = passage_activations(subject, attached, passages, subject.bos_id, batch_tokens)
    for number, (text, passage) in enumerate(zip(TEXTS, passages, strict=True)):
        words = [BOS, *text.split()]
        assert [VOCABULARY[i] for i in passage.token_ids] == words[1:]
        assert passage.counts.all()
        assert not len(passage.cut_ids)
        values = dense(found, number, len(words) - 1)
        truth = by_hand(subject, attached, [token_id(word) for word in words])[1:]
        np.testing.assert_allclose(values, truth, atol=1e-3)
        planted = [[MEANING[latent](words, i) for latent in range(NUM_LATENTS)] for i in range(1, len(words))]
        np.testing.assert_allclose(values, planted, atol=1e-2)
    order = np.lexsort((found.token, found.passage, found.latent))
    assert (order == np.arange(len(order))).all()
    of_def = found.of(5)
    assert set(zip(of_def.passage.tolist(), of_def.token.tolist(), strict=True)) == {(1, 0), (6, 0), (6, 3)}
    assert found.latents.tolist() == sorted({latent for latent in found.latent.tolist()})
    for latent, maximum in zip(found.latents, found.maxima, strict=True):
        assert maximum == found.value[found.latent == latent].max()


@pytest.mark.parametrize("measure", ["max", "mean"])
def test_values_of_passages_are_the_columns_of_a_dense_table(
    subject: SubjectModel,  # noqa: F811
    attached: AttachedCoder,  # noqa: F811
    measure: Measure,
) -> None:
    texts = [*TEXTS, f"9 {BOS} def"]
    passages = tokenize_passages(subject, named(texts), subject.bos_id, CONTEXT)
    values = measure_passages(subject, attached, passages, subject.bos_id, measure, batch_tokens=20)
    table = np.zeros((len(texts), NUM_LATENTS))
    for number, text in enumerate(texts):
        words = [BOS, *text.split()]
        acts = by_hand(subject, attached, [token_id(word) for word in words])[1:]
        acts = acts[[word != BOS for word in words[1:]]]
        table[number] = acts.max(axis=0) if measure == "max" else acts.mean(axis=0)
    assert values.latents.tolist() == np.flatnonzero(table.any(axis=0)).tolist()
    for cells in (1, len(texts) * 3, 10_000):
        tiles = list(values.tiles(cells))
        assert all(tile.shape[1] <= max(cells // len(texts), 1) for _, tile in tiles)
        np.testing.assert_allclose(
            np.concatenate([tile for _, tile in tiles], axis=1), table[:, values.latents], atol=1e-3
        )
        assert [part.start for part, _ in tiles] == [0, *(part.stop for part, _ in tiles[:-1])]


def test_a_passage_is_cut_where_a_context_ends_and_special_tokens_do_not_count(
    subject: SubjectModel,  # noqa: F811
    attached: AttachedCoder,  # noqa: F811
) -> None:
    texts = ["def " * 40 + "zzz " * 3, f"def {BOS} def", "9 \ud800 def"]
    short = 16
    passages = tokenize_passages(subject, named(texts), subject.bos_id, short)
    assert (len(passages[0].token_ids), len(passages[0].cut_ids)) == (short - 1, 43 - short + 1)
    assert passages[0].cut_ids[-1] == token_id("zzz")
    assert passages[1].counts.tolist() == [True, False, True]
    found = passage_activations(subject, attached, passages, subject.bos_id)
    assert not len(found.of(4).token), "what is cut is not read"
    assert len(found.of(5).token) == short - 1 + 2 + 1
    assert (1, 1) not in set(zip(found.passage.tolist(), found.token.tolist(), strict=True))
    # the subject's longest context holds too
    assert len(tokenize_passages(subject, named(["9 " * 500]), subject.bos_id, 1000)[0].token_ids) == CONTEXT - 1


def test_a_corpus_without_bos_is_read_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_family("llama")
    on_tiny = attach(tiny, coder_on(("layers.1",)))
    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    monkeypatch.setattr(tiny, "tokenizer", tokenizer)
    texts = ["t1", "t5 t6 t7 t8", "t9 t2"]
    for bos_id in (None, 3):
        passages = tokenize_passages(tiny, named(texts), bos_id, 64)
        found = passage_activations(tiny, on_tiny, passages, bos_id)
        for number, text in enumerate(texts):
            ids = [int(word[1:]) for word in text.split()]
            hidden = tiny.capture(torch.tensor([[3, *ids] if bos_id else ids]), on_tiny.read)[on_tiny.read[0]][0]
            truth = on_tiny.coder.encode(hidden).numpy()[-len(ids) :]
            np.testing.assert_allclose(dense(found, number, len(ids), truth.shape[1]), truth, atol=1e-4)


def test_passages_without_text_are_refused_by_name(subject: SubjectModel) -> None:  # noqa: F811
    for text in ("", " \n ", BOS, f"{BOS} {BOS}"):
        with pytest.raises(InputError, match="passage 2 "):
            tokenize_passages(subject, named(["def", text]), subject.bos_id, CONTEXT)


def test_values_that_are_not_finite_are_refused_by_name(
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
    passages = tokenize_passages(subject, named(TEXTS), subject.bos_id, CONTEXT)
    with pytest.raises(NonFiniteError, match="passage 5:"):
        measure_passages(subject, attached, passages, subject.bos_id)


@given(
    entries=st.dictionaries(
        st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 5)),
        st.sampled_from((-2.0, -1.0, 1.0, 2.0, 3.5)),
        max_size=30,
    ),
    measure=st.sampled_from(("max", "mean")),
)
def test_reducing_is_what_a_dense_array_says(entries: dict[tuple[int, int, int], float], measure: Measure) -> None:
    """Activations of both signs, which some coders have: the larger magnitude stands for the passage, with its sign."""
    cube = np.zeros((4, 5, 6))
    for place, value in entries.items():
        cube[place] = value
    passage, token, latent = np.nonzero(cube)
    columns = (np.asarray(column, dtype=np.int32) for column in (passage, token, latent))
    acts = ordered_activations([PassageActivations(*columns, cube[passage, token, latent].astype(np.float32))])
    found = passage_values(reduced(acts, np.full(4, 5), measure), 4)
    if measure == "mean":
        expected = cube.mean(axis=1)
    else:
        high, low = cube.max(axis=1), cube.min(axis=1)
        expected = np.where(high >= -low, high, low)
    assert found.latents.tolist() == np.flatnonzero(expected.any(axis=0)).tolist()
    assert (found.value != 0).all()
    table = np.zeros_like(expected)
    for part, tile in found.tiles(8):
        table[:, found.latents[part]] = tile
    np.testing.assert_allclose(table, expected, atol=1e-6)
