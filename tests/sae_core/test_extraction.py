"""Extraction against a brute force that knows nothing of it: every context alone, plain transformers, plain loops."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from sae_core.attachment import AttachedCoder, attach, check_fits
from sae_core.errors import CoderError, NonFiniteError
from sae_core.exemplar_store import ExemplarStore
from sae_core.extraction import extract
from sae_core.loading import load_coder
from sae_core.merging import merge_partials
from sae_core.partial import ExtractionSettings
from sae_core.parts.encoder import AffineEncoder
from sae_core.records import HISTOGRAM_EDGES, Origin, Side, Source
from sae_core.subject import SubjectModel
from sae_core.tokens import CorpusSpec, TokenCorpus, build_corpus
from tests import planted_world
from tests.planted_world import CONTEXT, MEANING, NUM_LATENTS, VOCABULARY

T = 16
SETTINGS = ExtractionSettings(
    context_length=CONTEXT, window_length=T, context_tokens=T, top_exemplars=3, sampled_exemplars=5, batch_tokens=500
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> planted_world.PlantedWorld:
    return planted_world.build(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def subject(world: planted_world.PlantedWorld) -> SubjectModel:
    return SubjectModel.load(str(world.subject), device="cpu")


@pytest.fixture(scope="module")
def attached(world: planted_world.PlantedWorld, subject: SubjectModel) -> AttachedCoder:
    return attach(subject, load_coder(str(world.coder)))


@pytest.fixture(scope="module")
def corpus(world: planted_world.PlantedWorld, subject: SubjectModel) -> TokenCorpus:
    spec = CorpusSpec(path=str(world.corpus), num_tokens=15_000, context_length=CONTEXT)
    return build_corpus(spec, subject.tokenizer, subject.bos_id, world.folder / "tokens")


def run(
    subject: SubjectModel,
    attached: AttachedCoder,
    corpus: TokenCorpus,
    folder: Path,
    shards: list[range],
    settings: ExtractionSettings,
) -> ExemplarStore:
    paths = []
    for number, shard in enumerate(shards):
        (partial,) = extract(subject, [attached], corpus, shard, settings)
        paths.append(folder / f"partial-{number}.safetensors")
        partial.save(paths[-1])
    source = Source("planted", "subject", "rev", "h.0", "coder", attached.coder.fingerprint, NUM_LATENTS)
    return merge_partials(paths, source, settings, corpus, folder / "exemplars")


@pytest.fixture(scope="module")
def store(
    subject: SubjectModel, attached: AttachedCoder, corpus: TokenCorpus, tmp_path_factory: pytest.TempPathFactory
) -> ExemplarStore:
    folder = tmp_path_factory.mktemp("whole")
    return run(subject, attached, corpus, folder, [range(corpus.num_contexts)], SETTINGS)


@pytest.fixture(scope="module")
def truth(world: planted_world.PlantedWorld, corpus: TokenCorpus) -> list[np.ndarray]:
    """Per context [T, L] activations from transformers' own model and the coder's formula written out."""
    model = AutoModelForCausalLM.from_pretrained(world.subject)
    coder = planted_world.build_coder()
    out = []
    for c in range(corpus.num_contexts):
        ids = torch.from_numpy(np.array(corpus.context(c))).long()[None]
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[1][0]
        assert isinstance(coder.encoder, AffineEncoder)
        pre = hidden @ coder.encoder.weight.T + coder.encoder.bias
        acts = torch.where(pre > 0.5, pre, torch.zeros(()))
        acts[0] = 0.0  # the BOS does not count
        out.append(acts.numpy())
    return out


def test_subject_means_what_the_table_says(truth: list[np.ndarray], corpus: TokenCorpus) -> None:
    for c in range(0, corpus.num_contexts, 7):
        words = [VOCABULARY[i] for i in corpus.context(c)]
        for i in range(1, len(words)):
            expected = [MEANING[latent](words, i) for latent in range(NUM_LATENTS)]
            np.testing.assert_allclose(truth[c][i], expected, atol=2e-3)


def windows(corpus: TokenCorpus, truth: list[np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
    """(context, position) -> [<=T, L] for windows with a token that counts."""
    out = {}
    for c, acts in enumerate(truth):
        for position in range(0, len(acts), T):
            if position > 0 or len(acts) > 1:
                out[c, position] = acts[position : position + T]
    return out


def test_statistics_equal_brute_force(store: ExemplarStore, corpus: TokenCorpus, truth: list[np.ndarray]) -> None:
    found = store.statistics
    shape = (3, NUM_LATENTS)
    fire, firing, total = np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape)
    largest, histogram = np.zeros(shape, np.float32), np.zeros((*shape, len(HISTOGRAM_EDGES) + 1), int)
    tokens, num_windows = np.zeros(3, int), np.zeros(3, int)
    for (c, position), acts in windows(corpus, truth).items():
        side = corpus.context_side[c]
        tokens[side] += len(acts) - (position == 0)
        num_windows[side] += 1
        fire[side] += (acts > 0).sum(0)
        firing[side] += (acts > 0).any(0)
        total[side] += acts.sum(0)
        largest[side] = np.maximum(largest[side], acts.max(0))
        for latent in np.flatnonzero((acts > 0).any(0)):
            histogram[side, latent, int((acts[:, latent].max() >= HISTOGRAM_EDGES).sum())] += 1
    assert tokens.sum() == 15_000
    np.testing.assert_array_equal(found.num_tokens, tokens)
    np.testing.assert_array_equal(found.num_windows, num_windows)
    np.testing.assert_array_equal(found.fire_count, fire)
    np.testing.assert_array_equal(found.num_windows_firing, firing)
    np.testing.assert_array_equal(found.histogram, histogram)
    np.testing.assert_allclose(found.max_activation, largest, rtol=1e-5)
    np.testing.assert_allclose(found.sum_activation, total, rtol=1e-5)
    assert fire[:, 3].sum() == 0
    assert 0 < fire[:, 4].sum() <= 12


def test_top_exemplars_equal_brute_force(store: ExemplarStore, corpus: TokenCorpus, truth: list[np.ndarray]) -> None:
    every = windows(corpus, truth)
    for side, latent in itertools.product(Side, range(NUM_LATENTS)):
        maxima = sorted(
            (
                float(acts[:, latent].max())
                for (c, _), acts in every.items()
                if corpus.context_side[c] == side and acts[:, latent].any()
            ),
            reverse=True,
        )
        found = store.exemplars(latent, side, Origin.TOP)
        np.testing.assert_allclose([e.max_activation for e in found], maxima[:3], rtol=1e-5)
        for exemplar in found + store.exemplars(latent, side, Origin.SAMPLED):
            whole = corpus.context(exemplar.context)
            np.testing.assert_array_equal(exemplar.token_ids, whole[exemplar.position : exemplar.position + T])
            np.testing.assert_array_equal(
                exemplar.context_ids, whole[max(0, exemplar.position - T) : exemplar.position]
            )
            np.testing.assert_allclose(
                exemplar.activations, every[exemplar.context, exemplar.position][:, latent], atol=1e-5
            )
            assert exemplar.document == corpus.context_document[exemplar.context]
            assert corpus.context_side[exemplar.context] == side


def test_census_pool_holds_everything(store: ExemplarStore, corpus: TokenCorpus, truth: list[np.ndarray]) -> None:
    every = windows(corpus, truth)
    for side in Side:
        pool = store.pool(side)
        assert pool.is_census
        keys = list(zip(pool.context.tolist(), pool.position.tolist(), strict=True))
        assert sorted(keys) == sorted(k for k in every if corpus.context_side[k[0]] == side)
        dense = np.zeros((len(keys), T, NUM_LATENTS), np.float32)
        for latent in range(NUM_LATENTS):
            window, column, value = pool.activations(latent)
            dense[window, column.astype(int) - pool.context_tokens, latent] = value
        for row, key in enumerate(keys):
            np.testing.assert_allclose(dense[row, : len(every[key])], every[key], atol=1e-5)
            counted = pool.counts[row, pool.context_tokens :]
            assert counted.sum() == len(every[key]) - (key[1] == 0)


def test_shards_in_any_order_merge_to_the_whole(
    store: ExemplarStore, subject: SubjectModel, attached: AttachedCoder, corpus: TokenCorpus, tmp_path: Path
) -> None:
    small = ExtractionSettings(**{**SETTINGS.__dict__, "pool_windows": 100})
    middle = corpus.num_contexts // 3
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = run(subject, attached, corpus, tmp_path / "one", [range(corpus.num_contexts)], small)
    two = run(subject, attached, corpus, tmp_path / "two", [range(middle, corpus.num_contexts), range(middle)], small)
    np.testing.assert_array_equal(one.statistics.fire_count, two.statistics.fire_count)
    np.testing.assert_array_equal(one.statistics.histogram, two.statistics.histogram)
    for side, latent, origin in itertools.product(Side, range(NUM_LATENTS), Origin):
        first, second, whole = (s.exemplars(latent, side, origin) for s in (one, two, store))
        for other in (second, whole):
            assert [(e.context, e.position) for e in first] == [(e.context, e.position) for e in other]
    for side in Side:
        first_pool, second_pool = one.pool(side), two.pool(side)
        assert len(first_pool.tokens) == 100
        assert not first_pool.is_census
        assert first_pool.exemplar_tokens is not None
        shown = {tuple(row[row >= 0]) for row in first_pool.exemplar_tokens}
        exemplars = [e for n in range(NUM_LATENTS) for origin in Origin for e in one.exemplars(n, side, origin)]
        assert shown == {(*e.context_ids, *e.token_ids) for e in exemplars}
        np.testing.assert_array_equal(first_pool.tokens, second_pool.tokens)
        np.testing.assert_array_equal(first_pool.entry_window, second_pool.entry_window)


@pytest.mark.long
def test_uniform_sample_is_uniform(
    subject: SubjectModel, attached: AttachedCoder, corpus: TokenCorpus, tmp_path: Path
) -> None:
    """Over many seeds every firing window of a latent is drawn equally often (chi-square)."""
    drawn: dict[tuple[int, int], int] = defaultdict(int)
    seeds, contexts = 120, range(0, corpus.num_contexts, 1)
    for seed in range(seeds):
        settings = ExtractionSettings(**{**SETTINGS.__dict__, "seed": seed, "batch_tokens": 8192})
        (partial,) = extract(subject, [attached], corpus, range(contexts.start, 120), settings)
        firings = partial.firings
        mine = firings.group == 2 * len(Side) + Side.EXPLAIN
        drawn_now = np.argsort(firings.key[mine])[: settings.sampled_exemplars]
        for window in firings.window[mine][drawn_now]:
            drawn[divmod(int(window), settings.windows_per_context)] += 1
    words = {
        c: [VOCABULARY[i] for i in corpus.context(c)] for c in range(120) if corpus.context_side[c] == Side.EXPLAIN
    }
    population = {
        (c, place // T) for c, text in words.items() for place in range(1, len(text)) if text[place - 1] == "("
    }
    assert set(drawn) <= population
    counts = np.array([drawn[key] for key in sorted(population)])
    assert counts.sum() == seeds * SETTINGS.sampled_exemplars
    # Draws of one seed are without replacement, so the variance is a little below the multinomial's: the test is conservative.
    assert stats.chisquare(counts).pvalue > 1e-3


def test_no_document_on_two_sides(store: ExemplarStore, corpus: TokenCorpus) -> None:
    sides_of_document: dict[int, set[int]] = defaultdict(set)
    for side in Side:
        for document in store.pool(side).document.tolist():
            sides_of_document[document].add(int(side))
        for latent, origin in itertools.product(range(NUM_LATENTS), Origin):
            for exemplar in store.exemplars(latent, side, origin):
                sides_of_document[exemplar.document].add(int(side))
    assert all(len(sides) == 1 for sides in sides_of_document.values())
    assert {next(iter(s)) for s in sides_of_document.values()} == {0, 1, 2}


def test_coder_of_another_width_is_refused(attached: AttachedCoder) -> None:
    with pytest.raises(CoderError, match=r"reads 148 dimensions and hookpoint h\.0 of the subject carries 128"):
        check_fits(attached, dict.fromkeys(attached.read, 128))


def test_non_finite_activations_stop_the_pass(
    world: planted_world.PlantedWorld, attached: AttachedCoder, corpus: TokenCorpus
) -> None:
    broken = SubjectModel.load(str(world.subject), device="cpu")
    broken.model.transformer.h[0].mlp.c_proj.bias.data[3] = float("inf")
    with pytest.raises(
        NonFiniteError,
        match=r"hookpoint h\.0, from module h\.0\.mlp\.c_proj on, first in batch 0, context \d+ \(document \d+\)",
    ):
        extract(broken, [attached], corpus, range(4), SETTINGS)
