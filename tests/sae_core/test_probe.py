"""Suffixes in the planted world, where what a latent needs is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sae_core.attachment import AttachedCoder
from sae_core.exemplar_store import ExemplarStore
from sae_core.probe import ProbeSettings, probe_suffixes
from sae_core.records import SuffixProbe
from sae_core.subject import SubjectModel
from sae_core.suffix_evidence import load_suffix_probes, save_suffix_probes
from tests.planted_world import DIGITS, NUM_LATENTS, VOCABULARY
from tests.sae_core.test_extraction import attached, corpus, store, subject, world  # noqa: F401


@pytest.fixture(scope="module")
def probes(subject: SubjectModel, attached: AttachedCoder, store: ExemplarStore) -> list[SuffixProbe]:  # noqa: F811
    return probe_suffixes(subject, attached, store, range(NUM_LATENTS), ProbeSettings(exemplars=6, longest=16, masks=4))


def words(probe: SuffixProbe) -> list[str]:
    return [VOCABULARY[i] for i in probe.token_ids]


def test_suffixes_are_what_the_latent_reads(probes: list[SuffixProbe]) -> None:
    by_latent = {latent: [p for p in probes if p.latent == latent] for latent in range(NUM_LATENTS)}
    assert by_latent[3] == []
    for latent in (0, 1, 2, 5, 6, 7, 9):
        assert len(by_latent[latent]) >= 5
        assert all(p.found for p in by_latent[latent])
    assert all(words(p)[0] in DIGITS and len(p.token_ids) == 1 for p in by_latent[0])
    assert all(words(p) == ["(", "self"] for p in by_latent[1])
    assert all(words(p)[0] == "(" and len(p.token_ids) == 2 for p in by_latent[2])
    assert all(words(p) == ["def"] for p in by_latent[5])


def test_importances_tell_needed_tokens_from_others(probes: list[SuffixProbe]) -> None:
    for probe in probes:
        if probe.latent == 1:
            assert probe.importances.min() >= 0.5  # a mask can be the very token it hides
        if probe.latent == 2:
            assert probe.importances[0] >= 0.5
            assert probe.importances[1] < 0.1


def test_the_start_of_a_sequence_is_seen(probes: list[SuffixProbe]) -> None:
    assert [p.starts_sequence for p in probes if p.latent == 8] == [True] * len([p for p in probes if p.latent == 8])
    assert not any(p.starts_sequence for p in probes if p.latent in (0, 1, 5, 9))


def test_round_trip(probes: list[SuffixProbe], tmp_path: Path) -> None:
    save_suffix_probes(tmp_path / "p.safetensors", probes)
    back = load_suffix_probes(tmp_path / "p.safetensors")
    assert [len(back.get(latent, [])) for latent in range(NUM_LATENTS)] == [
        sum(p.latent == latent for p in probes) for latent in range(NUM_LATENTS)
    ]
    for latent, found in back.items():
        for one, other in zip(found, (p for p in probes if p.latent == latent), strict=True):
            np.testing.assert_array_equal(one.token_ids, other.token_ids)
            np.testing.assert_array_equal(one.importances, other.importances)
            assert one.starts_sequence == other.starts_sequence
