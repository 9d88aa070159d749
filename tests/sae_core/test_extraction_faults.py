"""What goes wrong on the way: broken activations, too little memory, several devices; against plain extractions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_core.attachment import AttachedCoder, attach
from sae_core.coder import SparseCoder
from sae_core.encoding import Replica, moved, replicas_on_all_gpus
from sae_core.errors import NonFiniteError, SubjectError
from sae_core.extraction import Extractor, extract
from sae_core.loading import load_coder
from sae_core.partial import ExtractionSettings, Partial
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder
from sae_core.subject import SubjectModel
from sae_core.tokens import CorpusSpec, TokenCorpus, build_corpus
from tests import planted_world
from tests.planted_world import CONTEXT, VOCABULARY

SETTINGS = ExtractionSettings(
    context_length=CONTEXT, window_length=16, context_tokens=16, top_exemplars=3, sampled_exemplars=5, batch_tokens=500
)
SKIP = dataclasses.replace(SETTINGS, skip_non_finite=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> planted_world.PlantedWorld:
    return planted_world.build(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def subject(world: planted_world.PlantedWorld) -> SubjectModel:
    return SubjectModel.load(str(world.subject), device="cpu")


@pytest.fixture
def attached(world: planted_world.PlantedWorld, subject: SubjectModel) -> AttachedCoder:
    return attach(subject, load_coder(str(world.coder)))


@pytest.fixture(scope="module")
def corpus(world: planted_world.PlantedWorld) -> TokenCorpus:
    subject = SubjectModel.load(str(world.subject), device="cpu")
    spec = CorpusSpec(path=str(world.corpus), num_tokens=6_000, context_length=CONTEXT)
    return build_corpus(spec, subject.tokenizer, subject.bos_id, world.folder / "few tokens")


def counts(partials: list[Partial]) -> dict[str, list[int]]:
    names = ("num_tokens", "num_windows", "fire_count", "num_windows_firing", "sum_high", "sum_low", "histogram")
    return {name: sum(getattr(p, name).astype(np.int64) for p in partials).tolist() for name in names}


def break_on(subject: SubjectModel, word: str, value: float) -> None:
    """Let the subject give ``value`` wherever it reads ``word``."""
    subject.model.transformer.wte.weight.data[VOCABULARY.index(word)] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_contexts_that_are_not_finite_are_skipped_and_counted(
    subject: SubjectModel, attached: AttachedCoder, corpus: TokenCorpus, value: float
) -> None:
    word = "self"
    bad = [c for c in range(corpus.num_contexts) if VOCABULARY.index(word) in corpus.context(c)]
    assert 3 < len(bad) < corpus.num_contexts - 3
    good = sorted(set(range(corpus.num_contexts)) - set(bad))
    alone = [extract(subject, [attached], corpus, range(c, c + 1), SETTINGS)[0] for c in good]
    break_on(subject, word, value)
    (partial,) = extract(subject, [attached], corpus, range(corpus.num_contexts), SKIP)
    assert counts([partial]) == counts(alone)
    assert partial.skipped.tolist() == [len(bad), sum(len(corpus.context(c)) - 1 for c in bad)]
    assert partial.num_tokens.sum() == 6_000 - partial.skipped[1]
    touched = {int(w) // SETTINGS.windows_per_context for w in (*partial.firings.window, *partial.pool.window)}
    assert touched <= set(good)
    assert np.isfinite(partial.firings.value).all()
    assert np.isfinite(partial.pool.value).all()


def test_the_place_of_broken_activations_is_named(
    subject: SubjectModel, attached: AttachedCoder, corpus: TokenCorpus
) -> None:
    context = next(c for c in range(60, corpus.num_contexts) if VOCABULARY.index("self") in corpus.context(c))
    break_on(subject, "self", float("nan"))
    with pytest.raises(NonFiniteError) as raised:
        extract(subject, [attached], corpus, range(context, context + 1), SETTINGS)
    words = str(raised.value)
    document = corpus.context_document[context]
    assert f"hookpoint h.0, from module wte on, first in batch 0, context {context} (document {document})" in words
    assert 'extraction.non_finite = "skip"' in words


@pytest.mark.parametrize("scale", [1e30, 1e12])
def test_a_coder_that_gives_absurd_activations_is_named(
    subject: SubjectModel, attached: AttachedCoder, corpus: TokenCorpus, scale: float
) -> None:
    encoder = attached.coder.encoder
    assert isinstance(encoder, AffineEncoder)
    huge = dataclasses.replace(attached.coder, encoder=dataclasses.replace(encoder, weight=encoder.weight * scale))
    with pytest.raises(NonFiniteError, match=r"the coder at h\.0 gives activations that are NaN, infinite or beyond"):
        extract(subject, [dataclasses.replace(attached, coder=huge)], corpus, range(4), SETTINGS)
    (partial,) = extract(subject, [dataclasses.replace(attached, coder=huge)], corpus, range(4), SKIP)
    assert partial.skipped[0] == 4
    assert partial.fire_count.sum() == partial.num_tokens.sum() == 0


def test_too_little_memory_halves_the_batch_and_goes_on(
    subject: SubjectModel, attached: AttachedCoder, corpus: TokenCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = range(corpus.num_contexts)
    (whole,) = extract(subject, [attached], corpus, contexts, SETTINGS)
    capture, sizes = subject.capture, []

    def tight(tokens: Tensor, hookpoints: list[object]) -> object:
        sizes.append(len(tokens))
        if len(tokens) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return capture(tokens, hookpoints)  # type: ignore[arg-type]

    monkeypatch.setattr(subject, "capture", tight)
    (halved,) = extract(subject, [attached], corpus, contexts, SETTINGS)
    assert counts([halved]) == counts([whole])
    np.testing.assert_array_equal(np.sort(halved.firings.key), np.sort(whole.firings.key))
    assert sum(size > 3 for size in sizes) <= 4, "what did not fit once is not tried again and again"

    def never(tokens: Tensor, hookpoints: list[object]) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(subject, "capture", never)
    with pytest.raises(SubjectError, match=r"does not hold one context of \d+ tokens beside the weights: lower"):
        extract(subject, [attached], corpus, contexts, SETTINGS)


def test_several_devices_give_what_one_gives(
    subject: SubjectModel, attached: AttachedCoder, corpus: TokenCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = range(corpus.num_contexts)
    one = Replica(subject, [attached])
    two = one.copy_to("cpu")
    assert two.subject.model is not subject.model
    assert two.subject.model.transformer.wte.weight.data_ptr() != subject.model.transformer.wte.weight.data_ptr()
    (expected,) = Extractor([one], corpus, SETTINGS).extract(contexts)
    calls = {id(one): 0, id(two): 0}
    plain = Replica.activations

    def counting(self: Replica, tokens: np.ndarray) -> object:
        calls[id(self)] += 1
        return plain(self, tokens)

    monkeypatch.setattr(Replica, "activations", counting)
    (found,) = Extractor([one, two], corpus, SETTINGS).extract(contexts)
    for field in dataclasses.fields(Partial):
        if field.name not in ("firings", "pool"):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))
    for name in ("group", "window", "value"):
        np.testing.assert_array_equal(getattr(found.firings, name), getattr(expected.firings, name))
    np.testing.assert_array_equal(found.pool.value, expected.pool.value)
    assert min(calls.values()) > 5
    assert replicas_on_all_gpus(one) == [one]
    # an error on one of them ends the pass
    break_on(two.subject, "self", float("nan"))
    with pytest.raises(NonFiniteError):
        Extractor([one, two], corpus, SETTINGS).extract(contexts)


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_latents_dealt_among_threads_give_what_one_thread_gives(
    subject: SubjectModel, attached: AttachedCoder, corpus: TokenCorpus, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr("sae_core.extraction._LEAST_LATENTS_A_THREAD", 1)
    found = []
    for number in (1, threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        (partial,) = Extractor([Replica(subject, [attached])], corpus, SETTINGS).extract(range(corpus.num_contexts))
        found.append(partial)
    for field in dataclasses.fields(Partial):
        one, many = (getattr(partial, field.name) for partial in found)
        if dataclasses.is_dataclass(one):
            for part in dataclasses.fields(one):
                np.testing.assert_array_equal(getattr(one, part.name), getattr(many, part.name))
        else:
            np.testing.assert_array_equal(one, many)
    assert found[0].firings.group.max() > 3 * 10


def test_moving_a_coder_moves_every_tensor(attached: AttachedCoder) -> None:
    coder = dataclasses.replace(
        attached.coder,
        encoder=AffineEncoder(torch.ones(3, 2), None, JumpReLU(torch.ones(3))),
        shift=torch.ones(2),
        skip=torch.ones(2, 2),
    )
    there = moved(coder, "meta")

    def tensors(part: object) -> list[Tensor]:
        if isinstance(part, Tensor):
            return [part]
        if dataclasses.is_dataclass(part):
            return [t for f in dataclasses.fields(part) for t in tensors(getattr(part, f.name))]
        return []

    assert isinstance(there, SparseCoder)
    assert len(tensors(there)) == len(tensors(coder)) == 6
    assert {t.device.type for t in tensors(there)} == {"meta"}
    assert there.facts == coder.facts


def test_the_same_shard_twice_is_our_own_mistake(
    subject: SubjectModel, attached: AttachedCoder, corpus: TokenCorpus
) -> None:
    extractor = Extractor([Replica(subject, [attached])], corpus, SETTINGS)
    extractor.extract(range(5))
    assert extractor.has_done(range(4, 9))
    assert not extractor.has_done(range(5, 9))
    with pytest.raises(AssertionError):
        extractor.extract(range(4, 9))
