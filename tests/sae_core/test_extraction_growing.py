"""Shards of a corpus that still grows are merged to the bytes that the whole corpus gives."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest

from sae_core.attachment import AttachedCoder, attach
from sae_core.encoding import Replica
from sae_core.extraction import Extractor
from sae_core.loading import load_coder
from sae_core.merging import merge_partials
from sae_core.partial import ExtractionSettings
from sae_core.pool_sample import PoolSample
from sae_core.records import Side, Source
from sae_core.subject import SubjectModel
from sae_core.tokens import CorpusSpec, TokenCorpus, build_corpus
from tests import planted_world
from tests.planted_world import CONTEXT, NUM_LATENTS, VOCABULARY
from tests.sae_core.corpus_world import grown

SETTINGS = ExtractionSettings(
    context_length=CONTEXT,
    window_length=16,
    context_tokens=16,
    top_exemplars=2,
    sampled_exemplars=3,
    pool_windows=30,
    batch_tokens=500,
    skip_non_finite=True,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> planted_world.PlantedWorld:
    return planted_world.build(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def subject(world: planted_world.PlantedWorld) -> SubjectModel:
    return SubjectModel.load(str(world.subject), device="cpu")


@pytest.fixture
def attached(world: planted_world.PlantedWorld, subject: SubjectModel) -> AttachedCoder:
    return attach(subject, load_coder(str(world.coder)))


@pytest.mark.parametrize("broken", [False, True])
def test_growing_and_whole_give_the_same_bytes(
    world: planted_world.PlantedWorld, subject: SubjectModel, attached: AttachedCoder, tmp_path: Path, broken: bool
) -> None:
    """Also where one process followed the corpus as it grew and another came when it was whole; a skipped context's
    windows have their place in the pool's sample, and no other comes for them."""
    spec = CorpusSpec(path=str(world.corpus), num_tokens=6_000, context_length=CONTEXT)
    corpus = build_corpus(spec, subject.tokenizer, subject.bos_id, tmp_path / "tokens")
    if broken:
        subject.model.transformer.wte.weight.data[VOCABULARY.index("self")] = float("nan")
    edges = [0, 20, 55, 56, corpus.num_contexts]
    shards = [range(first, last) for first, last in itertools.pairwise(edges)]
    replica = Replica(subject, [attached])
    source = Source("planted", "subject", "rev", "h.0", "coder", attached.coder.fingerprint, NUM_LATENTS)

    def begin(view: TokenCorpus) -> Extractor:
        return Extractor([replica], view, SETTINGS)

    def store(name: str, growing: int) -> dict[str, bytes]:
        """The first ``growing`` shards by a process that follows the corpus, the others by one that has it whole."""
        (tmp_path / name).mkdir()
        paths = []
        extractor = begin(grown(corpus, 5)) if growing else begin(corpus)
        for number, shard in enumerate(shards):
            if number == growing:
                extractor = begin(corpus)
            if number < growing:
                extractor.follow(grown(corpus, min(shard.stop + 3, corpus.num_contexts)))
            (partial,) = extractor.extract(shard)
            paths.append(tmp_path / name / f"{number}.safetensors")
            partial.save(paths[-1])
        pool = PoolSample(corpus, SETTINGS, subject.special_ids)
        made = merge_partials(paths, source, SETTINGS, corpus, tmp_path / name / "store", pool)
        for side in Side:
            assert len(made.pool(side).context) < 30 if broken else len(made.pool(side).context) == 30
        return {path.name: path.read_bytes() for path in made.folder.iterdir()}

    whole = store("whole", 0)
    for growing in (1, 3, len(shards)):
        assert store(f"grown-{growing}", growing) == whole


def test_a_shard_of_no_context_adds_nothing(
    world: planted_world.PlantedWorld, subject: SubjectModel, attached: AttachedCoder, tmp_path: Path
) -> None:
    """Shards that are shorter than a context leave some without one."""
    spec = CorpusSpec(path=str(world.corpus), num_tokens=500, context_length=CONTEXT)
    corpus = build_corpus(spec, subject.tokenizer, subject.bos_id, tmp_path / "tokens")
    settings = dataclasses.replace(SETTINGS, skip_non_finite=False)
    source = Source("planted", "subject", "rev", "h.0", "coder", attached.coder.fingerprint, NUM_LATENTS)
    stores = []
    for name, edges in (("one", [0, corpus.num_contexts]), ("two", [0, 0, corpus.num_contexts, corpus.num_contexts])):
        (tmp_path / name).mkdir()
        extractor = Extractor([Replica(subject, [attached])], corpus, settings)
        paths = []
        for first, last in itertools.pairwise(edges):
            paths.append(tmp_path / name / f"{len(paths)}.safetensors")
            extractor.extract(range(first, last))[0].save(paths[-1])
        made = merge_partials(paths, source, settings, corpus, tmp_path / name / "store")
        stores.append({path.name: path.read_bytes() for path in made.folder.iterdir()})
    assert stores[0] == stores[1]
