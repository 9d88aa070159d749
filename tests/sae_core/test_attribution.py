"""The screen by attribution against autograd latent by latent, closed forms of a hand-built subject, and real ablation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_core import attribution
from sae_core.attachment import AttachedCoder, attach
from sae_core.attribution import attribute
from sae_core.attribution_evidence import AttributionEvidence
from sae_core.coder import SparseCoder
from sae_core.context_sample import sample_contexts
from sae_core.errors import InputError
from sae_core.intervention.ablation import AblationSettings, run_ablation
from sae_core.intervention.windows import InterventionWindow
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder
from sae_core.parts.normalisation import LayerNorm, NoNormalisation
from sae_core.records import Side
from sae_core.subject import SubjectModel
from sae_core.token_corpus import TokenCorpus
from tests import planted_world
from tests.planted_world import GAIN, token_id
from tests.sae_core.intervention_world import World, make_world
from tests.sae_core.test_intervention_composed import block_outputs, random_coder
from tests.sae_core.tiny_families import tiny_family

COLUMNS = ("latent", "count", "sum_ce", "sum_abs_ce", "sum_kl")


def corpus_of(contexts: list[np.ndarray], sides: list[int] | None = None, documents: list[int] | None = None) -> Any:
    count = len(contexts)
    return TokenCorpus(
        folder=Path("nowhere"),
        tokens=np.concatenate(contexts).astype(np.int32),
        context_start=np.cumsum([0] + [len(ids) for ids in contexts]),
        context_document=np.array(documents or range(count), dtype=np.int32),
        context_side=np.array(sides or [2] * count, dtype=np.uint8),
        context_uid=np.arange(count, dtype=np.uint64) * np.uint64(7919),
        num_documents=count,
        num_tokens=sum(map(len, contexts)),
        fingerprint="test",
        bos_id=0,
    )


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def corpus(world: World) -> TokenCorpus:
    contexts = [ids[: 20 + 3 * (i % 5)] for i, ids in enumerate(world.contexts[:8])]
    return corpus_of(contexts)


@contextmanager
def edited(world: World, edits: dict[int, torch.Tensor], clean: tuple[torch.Tensor, ...] | None) -> Iterator[None]:
    """``edits`` [T, D] are added to the outputs of blocks, or to what these are on a clean pass."""
    with ExitStack() as stack:
        for layer, delta in edits.items():

            def edit(_m: object, _a: object, out: torch.Tensor, layer: int = layer, delta: torch.Tensor = delta) -> Any:
                return (out[0] if clean is None else clean[layer])[None] + delta[None]

            stack.callback(world.subject.model.model.layers[layer].register_forward_hook(edit).remove)
        yield


def logits_under(
    world: World,
    ids: torch.Tensor,
    edits: dict[int, torch.Tensor],
    clean: tuple[torch.Tensor, ...] | None,
    alpha: torch.Tensor,
) -> torch.Tensor:
    with edited(world, {layer: alpha * delta for layer, delta in edits.items()}, clean):
        return world.subject.model(input_ids=ids[None], use_cache=False).logits[0].double()


def one_by_one(
    world: World, attached: AttachedCoder, corpus: TokenCorpus, layers: dict[str, list[int]], *, clamped: bool
) -> dict[str, np.ndarray]:
    """The definitions: one forward and one backward pass of the plain model for each firing token of each latent.

    ``kl`` is the exact second-order KL, half the variance under the prediction of how fast its logits change.
    """
    coder, width = attached.coder, world.coder.directions.shape[1]
    sums = {name: np.zeros(coder.num_latents) for name in ("count", "sum_ce", "sum_abs_ce", "kl")}
    for ordinal in range(corpus.num_contexts):
        tokens = corpus.context(ordinal)
        states = block_outputs(world, tokens)
        x = torch.cat([states[i] for i in layers["in"]], 1)
        z = coder.encode(x)
        scale = coder.output_scale(x)
        strength = z if scale is None else z * scale[:, None]
        ids = torch.from_numpy(tokens.astype(np.int64))
        for t, latent in z.nonzero().tolist():
            if tokens[t] == 0:
                continue
            push = -strength[t, latent] * coder.directions[latent]
            edits = {}
            for i, layer in enumerate(layers["out"]):
                edits[layer] = torch.zeros(len(tokens), width)
                edits[layer][t] = push[i * width : (i + 1) * width]
            logits_at = partial(logits_under, world, ids, edits, states if clamped else None)
            alpha = torch.zeros((), requires_grad=True)
            log_p = logits_at(alpha).log_softmax(-1)
            ce = -log_p[torch.arange(len(ids) - 1), ids[1:]].sum()
            (change,) = torch.autograd.grad(ce, alpha)
            with torch.no_grad():
                step = 1e-3
                slope = (logits_at(torch.tensor(step)) - logits_at(torch.tensor(-step))) / (2 * step)
                p = log_p.exp()
                fisher = (p * slope**2).sum(-1) - (p * slope).sum(-1) ** 2
            sums["count"][latent] += 1
            sums["sum_ce"][latent] += float(change)
            sums["sum_abs_ce"][latent] += abs(float(change))
            sums["kl"][latent] += float(fisher.sum()) / 2
    return sums


def dense(evidence: AttributionEvidence) -> AttributionEvidence:
    return AttributionEvidence.joined([evidence])


CASES: list[tuple[tuple[str, ...], tuple[str, ...], Any, bool]] = [
    (("layers.0",), ("layers.0",), NoNormalisation(), False),
    (("layers.0",), ("layers.1",), LayerNorm(), False),
    (("layers.0",), ("layers.0", "layers.1", "layers.2"), NoNormalisation(), False),
    (("layers.0", "layers.1"), ("layers.0", "layers.1"), NoNormalisation(), True),
]


@pytest.mark.parametrize(
    ("into", "out", "normalisation", "clamped"),
    [
        pytest.param(*CASES[0], id="sae"),
        pytest.param(*CASES[1], id="transcoder with a scale", marks=pytest.mark.long),
        pytest.param(*CASES[2], id="transcoder of several places", marks=pytest.mark.long),
        pytest.param(*CASES[3], id="crosscoder"),
    ],
)
def test_every_latent_equals_autograd(
    world: World, corpus: TokenCorpus, into: tuple[str, ...], out: tuple[str, ...], normalisation: Any, clamped: bool
) -> None:
    attached = attach(world.subject, random_coder(into, out, normalisation))
    layers = {"in": [int(name[-1]) for name in into], "out": [int(name[-1]) for name in out]}
    truth = one_by_one(world, attached, corpus, layers, clamped=clamped)
    assert truth["count"].min() > 3
    found = [dense(attribute(world.subject, [attached], corpus, range(8), seed=s)[0]) for s in range(40)]
    np.testing.assert_array_equal(found[0].count, truth["count"])
    largest = np.abs(truth["sum_abs_ce"]).max()
    np.testing.assert_allclose(found[0].sum_ce, truth["sum_ce"], rtol=1e-3, atol=1e-5 * largest)
    np.testing.assert_allclose(found[0].sum_abs_ce, truth["sum_abs_ce"], rtol=1e-3, atol=1e-5 * largest)
    drawn = np.array([one.sum_kl for one in found])
    error = drawn.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert (error <= 0.25 * truth["kl"]).all()
    assert (np.abs(drawn.mean(axis=0) - truth["kl"]) <= 4 * error).all()
    assert (truth["kl"] > 1).sum() >= 4


def agrees(drawn: list[float], truth: float) -> None:
    """A mean of independent draws is its truth, within four standard errors of at most a fifth."""
    error = np.std(drawn, ddof=1) / np.sqrt(len(drawn))
    assert error < 0.2 * truth
    assert abs(np.mean(drawn) - truth) < 4 * error


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> SubjectModel:
    return SubjectModel.load(
        str(planted_world.build(tmp_path_factory.mktemp("planted"), num_documents=1).subject), device="cpu"
    )


def planted_contexts() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(60):
        ids = rng.integers(1, len(planted_world.VOCABULARY), 40)
        ids[rng.integers(0, 40, 12)] = token_id("def")
        ids[rng.integers(0, 40, 6)] = token_id("return")
        ids[rng.integers(0, 40, 6)] = token_id("cls")
        found.append(np.append(0, ids).astype(np.int32))
    return found


def test_a_subject_of_known_weights(planted: SubjectModel) -> None:
    """Latents 5 and 7 move one logit by GAIN at their own token, latent 6 moves nothing: closed forms."""
    contexts = planted_contexts()
    attached = attach(planted, planted_world.build_coder())
    runs = [dense(attribute(planted, [attached], corpus_of(contexts), range(60), seed=s)[0]) for s in range(20)]
    found = runs[0]
    for latent, word, moved in ((5, "def", "return"), (7, "cls", "(")):
        ce, fisher, count = 0.0, 0.0, 0
        for ids in contexts:
            with torch.no_grad():
                logits = planted.model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
            p = logits.double().softmax(-1)[:, token_id(moved)].numpy()
            at = np.flatnonzero(ids == token_id(word))
            count += len(at)
            fisher += float((GAIN**2 * p[at] * (1 - p[at])).sum()) / 2
            at = at[at + 1 < len(ids)]
            ce += float((GAIN * ((ids[at + 1] == token_id(moved)) - p[at])).sum())
        assert found.count[latent] == count
        # the hand-set norms are the identity to a percent
        assert found.sum_ce[latent] == pytest.approx(ce, rel=2e-2)
        agrees([run.sum_kl[latent] for run in runs], fisher)
    assert found.count[6] > 0
    # what nothing reads moves the last norm's mean a little
    assert found.abs_ce[6] < 0.02
    assert found.kl[6] < 1e-3
    assert found.abs_ce[5] > 0.2
    assert found.count[3] == 0
    assert np.isnan(found.kl[3])
    assert np.isnan(found.ce[3])


def test_small_ablations_have_the_effect_that_attribution_says(planted: SubjectModel) -> None:
    """With directions so short that the subject is linear in them, the screen is the ablation."""
    contexts = planted_contexts()
    corpus = corpus_of(contexts)
    whole = planted_world.build_coder()
    attached = attach(planted, replace(whole, decoder_weight=whole.decoder_weight * 0.002))
    found = [dense(attribute(planted, [attached], corpus, range(60), seed=s)[0]) for s in range(25)]
    latents = (5, 7, 12)
    windows = {latent: [InterventionWindow(c, 0, len(contexts[c]), c) for c in range(60)] for latent in latents}
    settings = AblationSettings(control_directions=2)
    ablated = run_ablation(planted, attached.coder, corpus.context, 60, windows, settings=settings)
    for latent in latents:
        rows = ablated.rows_of(latent)
        kl = (ablated.kl_firing[rows] * ablated.num_firing_tokens[rows]).sum()
        ce = (ablated.delta_ce[rows] * ablated.count_ce[rows]).sum()
        assert found[0].count[latent] == ablated.num_firing_tokens[rows].sum()
        assert found[0].sum_ce[latent] == pytest.approx(ce, rel=2e-2)
        agrees([one.sum_kl[latent] for one in found], kl)


def same(left: AttributionEvidence, right: AttributionEvidence) -> None:
    for name in COLUMNS:
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=2e-4, atol=1e-6, err_msg=name)
    assert (left.num_tokens, left.num_contexts) == (right.num_tokens, right.num_contexts)


def sae(world: World) -> AttachedCoder:
    return attach(world.subject, random_coder(("layers.0",), ("layers.0",), NoNormalisation()))


def test_batches_and_parts_change_nothing(world: World, corpus: TokenCorpus) -> None:
    (whole,) = attribute(world.subject, [sae(world)], corpus, range(8), batch_tokens=10_000)
    (small,) = attribute(world.subject, [sae(world)], corpus, range(8), batch_tokens=1)
    same(whole, small)
    parts = [attribute(world.subject, [sae(world)], corpus, part)[0] for part in ([6, 1, 3], [0, 2, 4, 5, 7])]
    same(dense(whole), AttributionEvidence.joined(parts))
    body = [ids for c in range(8) for ids in corpus.context(c) if ids != 0]
    assert whole.num_tokens == len(body)
    assert whole.num_contexts == 8


def test_labels_follow_the_seed(world: World, corpus: TokenCorpus) -> None:
    one, again, other = (attribute(world.subject, [sae(world)], corpus, range(8), seed=s)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(one.sum_kl, again.sum_kl)
    assert (one.sum_kl != other.sum_kl).any()
    np.testing.assert_allclose(one.sum_ce, other.sum_ce)
    with pytest.raises(InputError, match="differ in seed"):
        AttributionEvidence.joined([one, other])


def test_several_coders_at_once_are_as_each_alone(world: World, corpus: TokenCorpus) -> None:
    plain = sae(world)
    further = [
        attach(world.subject, random_coder(into, out, normalisation)) for into, out, normalisation, _ in CASES[1:]
    ]
    together = attribute(world.subject, [plain, *further], corpus, range(8))
    for attached, found in zip([plain, *further], together, strict=True):
        same(found, attribute(world.subject, [attached], corpus, range(8))[0])


def test_only_some_latents_of_some_contexts(world: World, corpus: TokenCorpus) -> None:
    (found,) = attribute(world.subject, [sae(world)], corpus, range(4), only={0: [1, 2], 3: [2]})
    alone = [dense(attribute(world.subject, [sae(world)], corpus, [c])[0]) for c in (0, 3)]
    expected = {1: alone[0].sum_ce[1], 2: alone[0].sum_ce[2] + alone[1].sum_ce[2]}
    assert set(found.latent.tolist()) <= {1, 2}
    for latent, value in expected.items():
        assert dense(found).sum_ce[latent] == pytest.approx(value, rel=1e-4)


def test_contexts_with_broken_numbers_are_left_out(corpus: TokenCorpus) -> None:
    world = make_world()
    attached = sae(world)
    bad = 4
    with torch.no_grad():
        world.subject.model.model.embed_tokens.weight[39] = float("nan")
    contexts = [corpus.context(c).copy() for c in range(8)]
    for c, ids in enumerate(contexts):
        ids[ids == 39] = 38
        if c == bad:
            ids[7] = 39
    rest = [c for c in range(8) if c != bad]
    (found,) = attribute(world.subject, [attached], corpus_of(contexts), range(8))
    (expected,) = attribute(world.subject, [attached], corpus_of(contexts), rest)
    assert (found.num_skipped, expected.num_skipped) == (1, 0)
    assert np.isfinite(found.sum_ce).all()
    same(found, expected)


@pytest.mark.parametrize("clamped", [False, True])
def test_what_one_coder_cannot_use_is_left_out_of_all(
    world: World, corpus: TokenCorpus, monkeypatch: pytest.MonkeyPatch, clamped: bool
) -> None:
    """Gradients of one pass, an SAE's or a crosscoder's, are broken on one context: neither counts that one."""
    plain, other = sae(world), attach(world.subject, random_coder(*CASES[3][:3]))
    bad, rest = 4, [c for c in range(8) if c != 4]
    expected = {id(one): attribute(world.subject, [one], corpus, rest)[0] for one in (plain, other)}
    real = attribution._Run._gradients

    def broken(self: Any, one: Any, batch: Any) -> Any:
        captured, gradients = real(self, one, batch)
        row = np.flatnonzero(batch.ordinals == bad)
        if one.clamped == clamped and len(row):
            gradients[0][one.places[0]][row[0], 2] = torch.nan
        return captured, gradients

    monkeypatch.setattr(attribution._Run, "_gradients", broken)
    for coders in ([plain, other], [other, plain]):
        found = attribute(world.subject, coders, corpus, range(8), batch_tokens=10_000)
        for attached, one in zip(coders, found, strict=True):
            assert one.num_skipped == 1
            same(one, expected[id(attached)])


def test_a_batch_that_memory_does_not_hold_is_halved(
    world: World, corpus: TokenCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,) = attribute(world.subject, [sae(world)], corpus, range(8))
    real = attribution._Run.attributions

    def tight(self: Any, passes: Any, batch: Any) -> Any:
        if len(batch.ordinals) > 3:
            raise torch.OutOfMemoryError("too much")
        return real(self, passes, batch)

    monkeypatch.setattr(attribution._Run, "attributions", tight)
    told: list[int] = []
    (found,) = attribute(world.subject, [sae(world)], corpus, range(8), batch_tokens=10_000, progress=told.append)
    same(found, expected)
    assert len(told) == 4
    assert told[-1] == len(corpus.tokens)


def test_evidence_is_kept_on_disk(world: World, corpus: TokenCorpus, tmp_path: Path) -> None:
    (found,) = attribute(world.subject, [sae(world)], corpus, range(8))
    found.save(tmp_path / "part.safetensors")
    same(found, AttributionEvidence.load(tmp_path / "part.safetensors"))
    broken = replace(found, latent=found.latent + 100)
    with pytest.raises(InputError, match="outside of 0 to 4"):
        AttributionEvidence.joined([broken])


def test_the_sample_is_of_documents() -> None:
    sizes = [1, 4, 2, 3]
    documents = [d for d, size in enumerate(sizes) for _ in range(size)]
    sides = [0 if d == 2 else 2 for d in documents]
    contexts = [np.arange(10) for _ in documents]
    corpus = corpus_of(contexts, sides, documents)
    small = sample_contexts(corpus, Side.SCORE, 30, seed=1)
    assert sorted(documents[c] for c in small.tolist()) == [0, 1, 3]
    assert len(sample_contexts(corpus, Side.SCORE, 31, seed=1)) == 4
    whole = sample_contexts(corpus, Side.SCORE, 10_000, seed=1)
    assert sorted(whole.tolist()) == [c for c, d in enumerate(documents) if d != 2]
    np.testing.assert_array_equal(whole[:3], small)
    first = {tuple(sample_contexts(corpus, Side.SCORE, 30, seed=s).tolist()) for s in range(20)}
    assert len(first) > 5, "which context stands for a document is drawn"
    assert len(sample_contexts(corpus, Side.CHOOSE, 100, seed=1)) == 0


def test_a_coder_of_no_direction_has_no_effect(world: World, corpus: TokenCorpus) -> None:
    coder: SparseCoder = random_coder(("layers.0",), ("layers.0",), NoNormalisation())
    silent = attach(world.subject, replace(coder, decoder_weight=torch.zeros_like(coder.decoder_weight)))
    (found,) = attribute(world.subject, [silent], corpus, range(8))
    assert found.count.sum() > 0
    assert not found.sum_kl.any()
    assert not found.sum_abs_ce.any()


def test_capped_logits(corpus: TokenCorpus) -> None:
    """On a Gemma 2 whose cap bites: the model's own logits, and autograd through them."""
    subject = copy.deepcopy(tiny_family("gemma2"))
    subject.config.final_logit_softcapping = 3.0
    width = subject.width(subject.hookpoint("layers.1"))
    generator = torch.Generator().manual_seed(1)
    coder = replace(
        random_coder(("layers.1",), ("layers.1",), NoNormalisation()),
        encoder=AffineEncoder(torch.randn(5, width, generator=generator), torch.zeros(5), JumpReLU(torch.ones(5))),
        decoder_weight=torch.randn(5, width, generator=generator),
        decoder_bias=torch.zeros(width),
    )
    (found,) = attribute(subject, [attach(subject, coder)], corpus, range(3))
    expected = np.zeros(5)
    for ordinal in range(3):
        ids = torch.from_numpy(corpus.context(ordinal).astype(np.int64))
        kept: list[torch.Tensor] = []

        def keep(_m: object, _a: object, out: Any, kept: list[torch.Tensor] = kept) -> Any:
            hidden = out[0] if isinstance(out, tuple) else out
            kept.append(hidden.detach().requires_grad_())
            return (kept[0], *out[1:]) if isinstance(out, tuple) else kept[0]

        handle = subject.base.get_submodule("layers.1").register_forward_hook(keep)
        log_p = subject.model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
        handle.remove()
        (gradient,) = torch.autograd.grad(log_p[torch.arange(len(ids) - 1), ids[1:]].sum(), kept[0])
        z = coder.encode(kept[0][0])
        z[torch.isin(ids, torch.tensor(sorted(subject.special_ids), dtype=torch.long))] = 0
        expected += (z * (gradient[0] @ coder.decoder_weight.T)).sum(0).detach().numpy()
    np.testing.assert_allclose(dense(found).sum_ce, expected, rtol=1e-3, atol=1e-4)
