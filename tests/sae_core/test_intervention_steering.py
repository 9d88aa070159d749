"""Strengths against closed forms, steering against a hand-written hook."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from sae_core.intervention.evidence import SteeringEvidence
from sae_core.intervention.steering import SteeringSettings, auroc_of, run_steering
from sae_core.intervention.strength import find_strengths
from tests.sae_core.intervention_world import World, make_world


def test_strengths_of_known_curves() -> None:
    def curves(x: np.ndarray, _asked: np.ndarray) -> np.ndarray:
        return np.array(
            [
                x[0] ** 2,  # crosses .5 at .7071
                1 - np.exp(-x[1]),  # saturates; crosses at .6931
                0.3 * (1 - np.exp(-x[2])),  # never gets there
                1e-8 * x[3] ** 2,  # far away: 7071
                0.0 if x[4] < 3 else 2.0,  # jumps over it
                abs(1 - abs(x[5] - 1)),  # up, down, up: crosses at .5, 1.5 and 2.5
            ]
        )

    found = find_strengths(
        curves, np.array([10.0, 0.01, 1.0, 1.0, 1.0, 0.01]), 0.5, tolerance=0.02, largest=1e5, max_evaluations=40
    )
    assert found.met.tolist() == [True, True, False, True, False, True]
    assert found.strength[0] == pytest.approx(0.7071, rel=0.02)
    assert found.strength[1] == pytest.approx(0.6931, rel=0.03)
    assert found.strength[3] == pytest.approx(7071, rel=0.02)
    assert found.strength[5] == pytest.approx(0.5, rel=0.02)
    assert np.isnan(found.strength[[2, 4]]).all()
    assert found.value[2] <= 0.3


def test_auroc_is_mann_whitney() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 50))
    chosen = np.stack([rng.permutation(50)[:7] for _ in range(3)])
    found = auroc_of(torch.from_numpy(scores), torch.from_numpy(chosen))
    for i in range(3):
        others = np.setdiff1d(np.arange(50), chosen[i])
        expected = mannwhitneyu(scores[i, chosen[i]], scores[i, others]).statistic / (7 * 43)
        assert float(found[i]) == pytest.approx(expected)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


SETTINGS = SteeringSettings(targets=(0.05, 0.33), max_positions=5)


@pytest.fixture(scope="module")
def evidence(world: World) -> SteeringEvidence:
    fit = {latent: world.windows(latent)[:3] for latent in range(4)}
    score = {latent: world.windows(latent)[3:6] for latent in range(4)}
    return run_steering(world.subject, world.coder, world.tokens, 24, fit, score, settings=SETTINGS, seed=5)


def mean_kl(world: World, latent: int, alpha: float, which: slice) -> list[float]:
    """KL(clean || steered) of each prompt by a hook on the plain model."""
    out = []
    for window in world.windows(latent)[which]:
        tokens = world.contexts[window.context].astype(np.int64)
        inside = np.arange(window.position, window.position + window.length)
        first = int(inside[tokens[inside] == latent + 1][0])
        span = slice(first, min(first + 5, window.position + window.length))
        rows = []
        for strength in (0.0, alpha):
            delta = torch.zeros(1, len(tokens), 24)
            delta[0, span] = strength * world.coder.directions[latent]
            handle = world.subject.model.model.layers[0].register_forward_hook(lambda _m, _a, o, d=delta: o + d)
            with torch.no_grad():
                logits = world.subject.model(input_ids=torch.from_numpy(tokens)[None]).logits[0]
            rows.append(logits.double().log_softmax(-1))
            handle.remove()
        out.append(float((rows[0].exp() * (rows[0] - rows[1])).sum(-1)[span].mean()))
    return out


def test_targets_are_met_or_flagged(world: World, evidence: SteeringEvidence) -> None:
    assert evidence.target.tolist() == [0.05] * 4 + [0.33] * 4
    met = evidence.unreachable == 0
    assert met[[0, 1, 3, 4, 5, 7]].all()
    for i in np.flatnonzero(met):
        assert evidence.kl_fit[i] == pytest.approx(evidence.target[i], rel=0.1)
        latent, alpha = int(evidence.latent[i]), float(evidence.alpha[i])
        assert np.mean(mean_kl(world, latent, alpha, slice(0, 3))) == pytest.approx(evidence.kl_fit[i], rel=1e-3)
        score = mean_kl(world, latent, alpha, slice(3, 6))
        assert evidence.kl_score_mean[i] == pytest.approx(np.mean(score), rel=1e-3)
        assert evidence.kl_score_median[i] == pytest.approx(np.median(score), rel=1e-3)
        assert evidence.kl_score_largest_share[i] == pytest.approx(max(score) / sum(score), rel=1e-3)
    controls = evidence.control_unreachable == 0
    distance = np.abs(evidence.control_kl_fit / evidence.target[:, None] - 1)
    assert (distance[controls] <= 0.1).all()


def test_a_direction_of_no_length_is_unreachable(evidence: SteeringEvidence) -> None:
    rows = evidence.rows_of(2)
    assert evidence.unreachable[rows].all()
    assert np.isnan(evidence.alpha[rows]).all()
    assert np.isnan(evidence.log_alpha_ratio[rows]).all()


def test_alpha_scales_against_the_length_of_the_direction(world: World, evidence: SteeringEvidence) -> None:
    row = int(evidence.rows_of(1)[0])
    assert evidence.direction_norm[row] == pytest.approx(float(world.coder.directions[1].norm()))
    push = evidence.alpha[row] * evidence.direction_norm[row]
    assert 0.01 < push < 100


def test_evidence_survives_the_disk(tmp_path: Path, evidence: SteeringEvidence) -> None:
    evidence.save(tmp_path / "s.safetensors")
    back = SteeringEvidence.load(tmp_path / "s.safetensors")
    for field in dataclasses.fields(back):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(evidence, field.name))
