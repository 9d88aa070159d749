"""From intervention rows to values: which rows, which floor, which state."""

from __future__ import annotations

import dataclasses
import math
from asyncio import run
from typing import Any

import numpy as np
import pytest

from autointerp.evidence import AblationRequest, AttributionRequest, LatentEvidence, SteeringRequest
from autointerp.failure import FailureKind
from autointerp.scorers.intervention import InterventionScorer
from sae_core.intervention.evidence import AblationEvidence, ControlKind, SteeringEvidence
from sae_core.records import Side
from tests.autointerp.pools import HandStore, letters, make_pool

WORDS = ["<bos>", *"abcdef"]
R, K = 4, 3


@pytest.fixture
def store() -> HandStore:
    rules = [lambda c, i: 1.0, lambda c, i: 1.0, lambda c, i: 0.0, lambda c, i: 1.0]
    return HandStore({s: make_pool(s, [[0, 1, 2]], [int(s)], rules) for s in Side}, letters(WORDS))


def ablation(kl: dict[int, list[float]], control: float = 0.01, noise: float = 1e-9) -> AblationEvidence:
    """Rows of some latents; the controls' KL is ``control`` times 1 to R."""
    latents = np.array(sorted(kl), dtype=np.int32)
    rows = [(latent, value) for latent in sorted(kl) for value in kl[latent]]
    m = len(rows)
    controls = np.tile(control * np.arange(1, R + 1), (m, 1))
    some = {name: np.arange(m, dtype=np.int32) for name in ("document", "context", "position")}
    tokens = np.where((np.array([len(kl[x]) for x in latents.tolist()]) > 0)[:, None], [[1, 2, -1]], -1)
    return AblationEvidence(
        latent=np.array([r[0] for r in rows], dtype=np.int32),
        **some,
        num_firing_tokens=np.ones(m, np.int32),
        push_norm=np.full(m, 3.0),
        kl_firing=np.array([r[1] for r in rows]),
        kl_rest=np.linspace(0.0, 1.0, m),
        count_rest=np.arange(m, dtype=np.int32),
        delta_ce=np.full(m, 0.25),
        count_ce=np.ones(m, np.int32),
        control_kl_firing=controls,
        control_kl_rest=controls,
        control_delta_ce=controls,
        control_kind=np.array([ControlKind.ISOTROPIC] * 2 + [ControlKind.TYPICAL] * 2, dtype=np.uint8),
        latents=latents,
        control_direction=np.tile(np.arange(R, dtype=np.int32), (len(latents), 1)),
        num_windows=np.array([len(kl[x]) for x in latents.tolist()], dtype=np.int32),
        num_windows_silent=np.full(len(latents), 3, dtype=np.int32),
        tokens_raised=tokens[:, ::-1].astype(np.int32),
        logits_raised=np.ones((len(latents), K), np.float32),
        tokens_lowered=tokens.astype(np.int32),
        logits_lowered=-np.ones((len(latents), K), np.float32),
        path_share=np.tile(np.array([0.25, -0.05, 0.8], np.float32), (len(latents), 1)),
        path_block=np.array([-1, 2, 3], np.int32),
        block_list="layers",
        noise_floor=noise,
        num_noise_tokens=8,
        control_seed=0,
    )


def steering(**changes: Any) -> SteeringEvidence:
    """One row for latent 0 at 0.1 nats; controls need 1, 2, 4 and an unknown strength."""
    fields: dict[str, Any] = dict(
        latent=np.array([0], np.int32),
        target=np.array([0.1]),
        unreachable=np.array([0], np.uint8),
        num_prompts_fit=np.array([5], np.int32),
        num_prompts_score=np.array([5], np.int32),
        alpha=np.array([0.5]),
        direction_norm=np.array([2.0]),
        kl_fit=np.array([0.101]),
        kl_score_mean=np.array([0.12]),
        kl_score_median=np.array([0.09]),
        kl_score_largest_share=np.array([0.4]),
        control_unreachable=np.array([[0, 0, 0, 1]], np.uint8),
        control_alpha=np.array([[1.0, 2.0, 4.0, np.nan]]),
        control_kl_fit=np.full((1, R), 0.1),
        control_kl_score=np.full((1, R), 0.1),
        tokens_raised=np.array([[1, 2, 3]], np.int32),
        tokens_lowered=np.array([[4, 5, 6]], np.int32),
        lens_auroc=np.array([0.9]),
        lens_auroc_se=np.array([0.05]),
        lens_recall=np.array([0.4]),
        control_lens_auroc=np.array([[0.5, 0.6, np.nan, 0.7]]),
        control_lens_recall=np.array([[0.1, 0.2, np.nan, 0.3]]),
        output_auroc=np.array([0.8]),
        output_auroc_se=np.array([np.nan]),
        output_recall=np.array([0.3]),
        control_output_auroc=np.array([[0.5, 0.55, np.nan]]),
        control_output_recall=np.array([[np.nan, np.nan, np.nan]]),
        control_kind=np.zeros(R, np.uint8),
        tolerance=0.1,
        recall_at=50,
        control_seed=0,
    )
    return SteeringEvidence(**(fields | changes))


def test_a_latent_above_its_control_and_one_that_nobody_reads(store: HandStore) -> None:
    rows = ablation({0: [0.5, 0.6, 0.4, 0.5], 1: [0.0, 0.0, 0.0]})
    strong = run(InterventionScorer().score(None, LatentEvidence(0, store, ablation=rows)))
    assert strong.failure is None
    assert strong.explainer is None
    values = strong.values
    floor = 1e-6
    expected = np.mean(np.log(np.array([0.5, 0.6, 0.4, 0.5]) + floor))
    expected -= np.mean(np.log(0.01 * np.arange(1, 5) + floor))
    assert values["causal_effect"] == pytest.approx(expected)
    assert values["causal_effect_low"] < expected < values["causal_effect_high"]  # type: ignore[operator]
    assert values["causal_effect_low"] > 0  # type: ignore[operator]
    assert values["ablation_kl"] == pytest.approx(0.5)
    assert values["ablation_share"] == 1.0
    assert values["delta_ce"] == pytest.approx(0.25)
    assert values["causal_control_log_kl"] == pytest.approx(np.mean(np.log(0.01 * np.arange(1, 5) + floor)))
    weights = np.arange(4)
    assert values["ablation_kl_rest"] == pytest.approx(np.average(np.linspace(0, 1, 7)[:4], weights=weights))
    assert values["causal_effect_isotropic"] > values["causal_effect_typical"]  # type: ignore[operator]
    assert values["causal_num_controls"] == R
    assert values["causal_push_norm"] == 3.0
    logs = np.log(0.01 * np.arange(1, 5) + floor)
    assert values["causal_spread_isotropic"] == pytest.approx(np.std(logs[:2], ddof=1))
    assert values["causal_spread_typical"] == pytest.approx(np.std(logs[2:], ddof=1))
    assert values["direct_share"] == 0.25
    assert values["acts_at"] == "layers.3"
    assert values["top_promoted_tokens"] == ("a", "b")
    assert values["top_suppressed_tokens"] == ("b", "a")

    silent = run(InterventionScorer().score(None, LatentEvidence(1, store, ablation=rows))).values
    assert silent["causal_effect"] < -3  # type: ignore[operator]
    assert silent["ablation_share"] == 0.0
    assert silent.get("acts_at") is None, "what does nothing acts nowhere"
    assert silent.get("direct_share") is None


def test_the_noise_floor_takes_part(store: HandStore) -> None:
    loud = ablation({0: [0.5, 0.6]}, noise=0.1)
    values = run(InterventionScorer().score(None, LatentEvidence(0, store, ablation=loud))).values
    assert values["causal_floor"] == pytest.approx(1.0)
    assert values["ablation_share"] == 0.0


@pytest.mark.parametrize(
    ("latent", "rows", "kind"),
    [
        (0, ablation({0: [0.5]}), FailureKind.TOO_FEW_WINDOWS),
        (0, ablation({0: [], 1: [0.5, 0.5]}), FailureKind.NO_EFFECT_ROWS),
        (3, ablation({0: [0.5, 0.5]}), FailureKind.NO_EVIDENCE),
        (0, None, FailureKind.NO_EVIDENCE),
        (2, ablation({0: [0.5, 0.5]}), FailureKind.DEAD),
    ],
)
def test_states(store: HandStore, latent: int, rows: AblationEvidence | None, kind: FailureKind) -> None:
    score = run(InterventionScorer().score(None, LatentEvidence(latent, store, ablation=rows)))
    assert score.failure is not None
    assert score.failure.kind is kind
    assert score.values.get("causal_effect") is None
    if kind is FailureKind.TOO_FEW_WINDOWS:
        assert score.values["ablation_kl"] == 0.5
    if kind is FailureKind.NO_EFFECT_ROWS:
        assert "3 fell silent" in score.failure.message


def test_steering_values(store: HandStore) -> None:
    values = run(InterventionScorer().score(None, LatentEvidence(0, store, steering=steering()))).values
    assert values["steering_alpha"] == 0.5
    assert values["steering_norm"] == 1.0
    assert values["steering_kl"] == 0.12
    ratios = [math.log(2), math.log(4), math.log(8)]
    assert values["steering_effect"] == pytest.approx(np.mean(ratios))
    assert values["steering_effect_se"] == pytest.approx(np.std(ratios, ddof=1) / math.sqrt(3))
    assert values["steering_num_controls"] == 3
    assert values["steering_controls_unreachable"] == 1
    assert values["lens_auroc_control"] == pytest.approx(0.6)
    assert values["lens_auroc_se"] == 0.05
    assert values["lens_recall50"] == 0.4
    assert values["lens_recall50_control"] == pytest.approx(0.2)
    assert values["output_tokens_auroc"] == 0.8
    assert values["output_tokens_auroc_control"] == pytest.approx(0.525)
    assert values["output_tokens_recall50"] == 0.3
    assert values["output_tokens_auroc_se"] is None, "too few prompts for one"
    assert values["output_tokens_recall50_control"] is None
    assert "steering_failure" not in values


@pytest.mark.parametrize(("reached", "published"), [([1.0, 2.0], True), ([1.0], False), ([], False)])
def test_there_is_a_steering_effect_only_where_half_of_the_directions_reach_the_target(
    store: HandStore, reached: list[float], published: bool
) -> None:
    missing = R - len(reached)
    lost = steering(
        control_alpha=np.array([[np.nan] * missing + reached]),
        control_unreachable=np.array([[1] * missing + [0] * len(reached)], np.uint8),
    )
    values = run(InterventionScorer().score(None, LatentEvidence(0, store, steering=lost))).values
    assert values["steering_controls_unreachable"] == missing
    assert values["steering_num_controls"] == len(reached)
    names = ("steering_effect", "steering_effect_se", "steering_effect_low", "steering_effect_high")
    assert [values.get(name) is not None for name in names] == [published] * 4
    if published:
        assert values["steering_effect"] == pytest.approx(1.5 * math.log(2))


def test_unreachable_and_unfitted_are_states(store: HandStore) -> None:
    lost = steering(unreachable=np.array([1], np.uint8), alpha=np.array([np.nan]), kl_fit=np.array([0.02]))
    values = run(InterventionScorer().score(None, LatentEvidence(0, store, steering=lost))).values
    assert values["steering_failure"] == "unreachable"
    assert values["steering_kl_fit"] == 0.02
    assert values.get("steering_alpha") is None
    empty = steering(num_prompts_fit=np.array([0], np.int32))
    values = run(InterventionScorer().score(None, LatentEvidence(0, store, steering=empty))).values
    assert values["steering_failure"] == "too_few_windows"
    other = run(InterventionScorer().score(None, LatentEvidence(1, store, steering=steering()))).values
    assert not any(name.startswith("steering") for name in other)


def test_needs_follow_the_config() -> None:
    ask, attribute, steer = InterventionScorer(windows=6, steered_latents=9).needs()
    assert attribute == AttributionRequest(tokens=131_072)
    assert ask == AblationRequest(windows=6, control_directions=8)
    assert steer == SteeringRequest(latents=9)
    assert InterventionScorer(steered_latents=0, attribution_tokens=0).needs() == [AblationRequest()]
    budget = InterventionScorer(steered_latents=0, latents=50, random_share=0.5, attribution_tokens=7).needs()
    assert budget == [AblationRequest(latents=50, random_share=0.5), AttributionRequest(tokens=7)]
    with pytest.raises(ValueError, match="latents is 50 and attribution_tokens 0"):
        InterventionScorer(latents=50, attribution_tokens=0)
    assert not InterventionScorer().judges_explanation


def test_the_typical_kl_and_the_change_of_cross_entropy_have_intervals_and_controls(store: HandStore) -> None:
    kl = [0.01, 0.04, 0.16]
    evidence = ablation({3: kl})
    evidence = dataclasses.replace(evidence, delta_ce=np.array([0.1, 0.2, 0.6]), count_ce=np.array([2, 1, 0], np.int32))
    score = run(InterventionScorer().score(None, LatentEvidence(3, store, ablation=evidence)))
    values = score.values
    # ln 4 apart: mean ln .04, standard deviation ln 4; Student's t of 2 degrees of freedom at .975 is 4.302653
    half = 4.302653 * math.log(4) / math.sqrt(3)
    assert values["ablation_kl_typical"] == pytest.approx(0.04, rel=1e-3)
    assert values["ablation_kl_typical_low"] == pytest.approx(0.04 * math.exp(-half), rel=1e-3)
    assert values["ablation_kl_typical_high"] == pytest.approx(0.04 * math.exp(half), rel=1e-3)
    # controls .01, .02, .03, .04 in every window
    assert values["control_kl_typical"] == pytest.approx(0.01 * 24**0.25, rel=1e-3)
    assert math.log(0.04 / (0.01 * 24**0.25)) == pytest.approx(values["causal_effect"], rel=1e-3)
    # the third window has no next token: the mean of .1 and .2, t of one degree of freedom 12.7062
    assert values["delta_ce"] == pytest.approx(0.15)
    assert values["delta_ce_low"] == pytest.approx(0.15 - 12.7062 * 0.05, rel=1e-4)
    assert values["control_delta_ce"] == pytest.approx(0.025)
    # silent tokens: none in the first window, 1 and 2 in the others; all have the controls' mean
    assert values["control_kl_rest"] == pytest.approx(0.025)
