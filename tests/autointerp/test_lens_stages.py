"""The stages ``lens`` and ``token_change``: planned where a component asks, and what they leave on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autointerp.evidence import EvidenceRequest, LensRequest, TokenChangeRequest
from autointerp.pipeline.folder import RunFolder
from autointerp.pipeline.stages.intervene import promised_tokens
from autointerp.pipeline.stages.lens import Lens
from autointerp.pipeline.stages.token_change import TokenChange
from sae_core.attachment import attach
from sae_core.lens_evidence import LensEvidence, TokenChangeEvidence
from sae_core.records import Source
from sae_core.subject import SubjectModel
from tests import planted_world
from tests.planted_world import NUM_LATENTS, token_id


class Context(SimpleNamespace):
    """What these stages reach of a run."""

    def request(self, kind: type[EvidenceRequest]) -> EvidenceRequest | None:
        return next((asked for asked in self.asked if isinstance(asked, kind)), None)

    def attached(self, source: str) -> Any:
        return attach(self.subject, planted_world.build_coder())

    def latents(self, source: str) -> list[int]:
        return [0, 5, 7, 12]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> SubjectModel:
    world = planted_world.build(tmp_path_factory.mktemp("planted"), num_documents=1)
    return SubjectModel.load(str(world.subject), device="cpu")


def context(subject: SubjectModel, out: Path, *asked: EvidenceRequest) -> Any:
    source = Source("one", "subject", "0", "h.0", "coder", "0" * 64, NUM_LATENTS)
    config = SimpleNamespace(seed=4, chunk_latents=3)
    return Context(subject=subject, folder=RunFolder(out), sources=[source], config=config, asked=asked)


def test_without_a_request_nothing_is_planned(subject: SubjectModel, tmp_path: Path) -> None:
    assert Lens().plan(context(subject, tmp_path, TokenChangeRequest())) == []
    assert TokenChange().plan(context(subject, tmp_path, LensRequest())) == []


def test_the_lens_of_a_source_is_one_chunk(subject: SubjectModel, tmp_path: Path) -> None:
    run = context(subject, tmp_path, LensRequest(neighbours=3, tokens=2))
    (spec,) = Lens().plan(run)
    told: list[int] = []
    Lens().run(run, spec, told.append)
    found = LensEvidence.load(run.folder.evidence("one", "lens", 0))
    assert found.neighbours.shape == (NUM_LATENTS, 3)
    assert found.promoted.shape == (NUM_LATENTS, 2)
    assert found.promoted[5, 0] == token_id("return")
    assert told[-1] == spec.units == NUM_LATENTS


def test_token_change_goes_by_chunks_of_latents(subject: SubjectModel, tmp_path: Path) -> None:
    run = context(subject, tmp_path, TokenChangeRequest(prompts=4, tokens=2))
    specs = TokenChange().plan(run)
    for spec in specs:
        TokenChange().run(run, spec, lambda done: None)
    parts = [TokenChangeEvidence.load(run.folder.evidence("one", "token_change", n)) for n in range(len(specs))]
    assert [part.latents.tolist() for part in parts] == [[0, 5, 7], [12]]
    assert parts[0].raised[1:, 0].tolist() == [token_id("return"), token_id("(")]
    assert parts[0].num_prompts == 4
    promised = promised_tokens(run, specs[0])
    assert {latent: tokens.tolist() for latent, tokens in promised.items()} == dict(
        zip([0, 5, 7], parts[0].raised.tolist(), strict=True)
    ), "what steering is compared with"
    assert promised_tokens(context(subject, tmp_path / "elsewhere"), specs[0]) == {}
