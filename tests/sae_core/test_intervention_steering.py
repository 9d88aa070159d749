"""Strengths against closed forms, steering against a hand-written hook."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, rankdata

from sae_core.errors import NonFiniteError
from sae_core.intervention.directions import deal_directions, draw_control_directions
from sae_core.intervention.divergence import Unembedding
from sae_core.intervention.evidence import POOL, SteeringEvidence
from sae_core.intervention.measure import measure, reference
from sae_core.intervention.promised import Rankings, jackknife_error
from sae_core.intervention.resume import Rows, UpperLayers
from sae_core.intervention.steering import SteeringSettings, run_steering
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


def test_a_curve_that_overflows_is_met_below_that_or_not_at_all() -> None:
    def curves(x: np.ndarray, _asked: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.array(
                [
                    x[0] ** 2 if x[0] < 0.8 else np.inf,  # crosses .5 at .7071
                    x[1] ** 2 if x[1] < 0.6 else np.inf,  # never gets there
                    np.inf,
                    0.0 if x[3] < 3 else np.inf,
                ]
            )

    for start in (0.01, 10.0):
        found = find_strengths(curves, np.full(4, start), 0.5, tolerance=0.02, largest=1e5, max_evaluations=60)
        assert found.met.tolist() == [True, False, False, False]
        assert found.strength[0] == pytest.approx(0.7071, rel=0.02)
        assert found.value[1] == pytest.approx(0.36, rel=0.02), "the nearest that is a number"
        assert np.isnan(found.value[2])

    def steep(x: np.ndarray, _asked: np.ndarray) -> np.ndarray:
        return np.where(x < 0.8, 0.5 * (x / 0.75) ** 8, np.inf)

    short = find_strengths(steep, np.array([0.1]), 0.5, tolerance=0.02, largest=1e5, max_evaluations=9)
    assert short.met[0], "what is too far says nothing of how far: the bracket is halved"


def test_the_first_crossing_on_the_way_from_the_start_is_taken() -> None:
    def curve(x: np.ndarray, _asked: np.ndarray) -> np.ndarray:
        return abs(1 - abs(x - 1))  # up, down, up: crosses .5 at .5, 1.5 and 2.5

    found = find_strengths(curve, np.array([0.1, 2.1]), 0.5, tolerance=0.02, largest=1e5, max_evaluations=40)
    assert found.strength == pytest.approx([0.5, 2.5], rel=0.02)


def test_rankings_are_mann_whitney_and_a_count() -> None:
    """Truth: scipy's statistic (ties at their mean), and a sort by hand, over the tokens that take part."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 25, size=(3, 60)).astype(np.float32)
    known = rng.random(60) < 0.8
    chosen = np.stack([rng.permutation(np.flatnonzero(known))[:7] for _ in range(3)])
    listed = np.concatenate([chosen, np.full((3, 1), -1), np.full((3, 1), np.flatnonzero(~known)[0])], axis=1)
    listed[2] = -1
    found = Rankings(torch.from_numpy(scores), torch.from_numpy(known))
    auroc, recall = found.auroc(torch.from_numpy(listed)), found.recall(torch.from_numpy(listed), 12)
    for i in range(2):
        others = np.setdiff1d(np.flatnonzero(known), chosen[i])
        expected = mannwhitneyu(scores[i, chosen[i]], scores[i, others]).statistic / (7 * len(others))
        assert auroc[i] == pytest.approx(expected)
        ranks = rankdata(scores[i, known])
        top = np.flatnonzero(known)[ranks > known.sum() - 12]
        assert recall[i] == np.isin(chosen[i], top).mean()
    assert np.isnan(auroc[2])
    assert np.isnan(recall[2])
    assert np.isnan(found.recall(torch.from_numpy(listed), int(known.sum()))).all()
    assert np.isfinite(found.recall(torch.from_numpy(listed), int(known.sum()) - 1)[:2]).all()


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(1).standard_t(3, size=9)
    without = np.array([np.delete(values, i).mean() for i in range(9)])
    assert jackknife_error(without) == pytest.approx(values.std(ddof=1) / 3)
    assert np.isnan(jackknife_error(without[:2]))


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


SETTINGS = SteeringSettings(targets=(0.1, 0.33, 1.0), max_positions=5, recall_at=6, other_lists=3, lens_tokens=4)
PROMISED = {latent: np.array([3 * latent + 1, 31 - latent, 20 + latent, -1]) for latent in (0, 1, 3, 4, 5)}
"""What latents are said to raise: of 2, which is steered, nothing; 4 and 5 are not steered."""


@pytest.fixture(scope="module")
def evidence(world: World) -> SteeringEvidence:
    fit = {latent: world.windows(latent)[:3] for latent in range(4)}
    score = {latent: world.windows(latent)[3:6] for latent in range(4)}
    return run_steering(
        world.subject, world.coder, world.tokens, 24, fit, score, promised=PROMISED, settings=SETTINGS, seed=5
    )


def steered_prompts(
    world: World, push: torch.Tensor, latent: int, which: slice
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(clean, steered) [T, V] logits of the steered tokens of each prompt, by a hook on the plain model."""
    out = []
    for window in world.windows(latent)[which]:
        tokens = world.contexts[window.context].astype(np.int64)
        inside = np.arange(window.position, window.position + window.length)
        first = int(inside[tokens[inside] == latent + 1][0])
        span = slice(first, min(first + 5, window.position + window.length))
        rows = []
        for strength in (0.0, 1.0):
            delta = torch.zeros(1, len(tokens), 24)
            delta[0, span] = strength * push
            handle = world.subject.model.model.layers[0].register_forward_hook(lambda _m, _a, o, d=delta: o + d)
            with torch.no_grad():
                logits = world.subject.model(input_ids=torch.from_numpy(tokens)[None]).logits[0]
            rows.append(logits.double()[span])
            handle.remove()
        out.append((rows[0], rows[1]))
    return out


def mean_kl(
    world: World, latent: int, alpha: float, which: slice, direction: torch.Tensor | None = None
) -> list[float]:
    """KL(clean || steered) of each prompt, along the latent's direction or another one."""
    found = []
    along = world.coder.directions[latent] if direction is None else direction
    for clean, steered in steered_prompts(world, alpha * along, latent, which):
        before, after = clean.log_softmax(-1), steered.log_softmax(-1)
        found.append(float((before.exp() * (before - after)).sum(-1).mean()))
    return found


def test_targets_are_met_or_flagged(world: World, evidence: SteeringEvidence) -> None:
    assert evidence.target.tolist() == [0.1] * 4 + [0.33] * 4 + [1.0] * 4
    met = evidence.unreachable == 0
    assert met[[0, 1, 3, 4, 5, 7, 8, 9, 11]].all()
    assert (evidence.unreachable[2::4] == 1).all()
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


def test_each_latent_is_compared_with_its_own_directions_those_of_its_ablation(
    world: World, evidence: SteeringEvidence
) -> None:
    """Truth: the KL of plain hooks along the pool's directions that the ablation deals (test_intervention_ablation)."""
    pool = draw_control_directions(world.subject, [world.subject.hookpoint("layers.0")], world.tokens, 24, POOL, 5)
    dealt = deal_directions(np.arange(4), pool.kinds, 4, 5)
    assert len({tuple(row) for row in dealt.tolist()}) == 4
    assert evidence.control_kind.tolist() == [0, 0, 1, 1]
    for i in range(4):
        latent = int(evidence.latent[i])
        length = float(world.coder.directions[latent].norm())
        for r in np.flatnonzero(evidence.control_unreachable[i] == 0).tolist():
            along, alpha = pool.vectors[int(dealt[latent, r])] * length, float(evidence.control_alpha[i, r])
            kl = np.mean(mean_kl(world, latent, alpha, slice(0, 3), along))
            assert evidence.control_kl_fit[i, r] == pytest.approx(kl, rel=1e-3)


@pytest.fixture(scope="module")
def half() -> World:
    """A subject in float16 whose activations are so long that the largest pushes overflow."""
    world = make_world()
    with torch.no_grad():
        world.subject.model.model.embed_tokens.weight *= 100
    world.subject.model.half()
    world.subject.dtype = torch.float16
    signatures = world.subject.model.model.embed_tokens.weight[1:7].float()
    return dataclasses.replace(world, coder=dataclasses.replace(world.coder, signatures=signatures))


def test_a_target_that_only_an_overflow_would_meet_is_unreachable_and_harms_no_other(half: World) -> None:
    fit, score = ({latent: half.windows(latent)[part] for latent in (0, 1, 3)} for part in (slice(0, 3), slice(3, 6)))
    settings = dataclasses.replace(SETTINGS, targets=(0.1, 500.0), largest_push=1e4)
    found = run_steering(half.subject, half.coder, half.tokens, 24, fit, score, settings=settings, seed=5)
    assert found.unreachable.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.isnan(found.alpha[3:]).all()
    assert np.isfinite(found.kl_fit).all()
    np.testing.assert_allclose(found.kl_fit[:3], 0.1, rtol=0.1)
    assert found.control_unreachable[3:].all()


def test_an_overflow_is_an_infinite_kl_for_those_who_look_for_a_push_and_an_error_for_others(half: World) -> None:
    upper, unembedding = UpperLayers(half.subject, [half.subject.hookpoint("layers.0")]), Unembedding(half.subject)
    (clean,) = upper.clean([half.contexts[0][:30]])
    of = [reference(unembedding, clean, half.contexts[0], [(4, 20)])]
    rows = Rows(np.array([4, 6]), np.array([20, 12]), np.array([0, 0]))
    delta = torch.full((len(rows.row), 24), 10.0)
    small = measure(upper, unembedding, of, rows, delta)
    assert (small.kl > 0).all()
    delta[torch.from_numpy(rows.row == 0)] = 1e6
    found = measure(upper, unembedding, of, rows, delta, overflow_is_far=True)
    assert np.isposinf(found.kl[rows.row == 0]).all()
    np.testing.assert_allclose(found.kl[rows.row == 1], small.kl[rows.row == 1], rtol=1e-3)
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        measure(upper, unembedding, of, rows, delta)


def test_a_subject_that_gives_no_numbers_is_an_error_and_not_unreachable() -> None:
    world = make_world()
    with torch.no_grad():
        world.subject.model.model.norm.weight[0] = torch.nan
    windows = {0: world.windows(0)[:3]}
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        run_steering(world.subject, world.coder, world.tokens, 24, windows, windows, settings=SETTINGS)


def test_promised_tokens_are_ranked_by_the_change_on_held_out_prompts(world: World, evidence: SteeringEvidence) -> None:
    """Truth: logits of the plain model with a hook; token 0 is special and takes no part."""
    norm, head = world.subject.model.model.norm, world.subject.model.lm_head.weight
    for i in np.flatnonzero(evidence.unreachable == 0):
        latent, alpha = int(evidence.latent[i]), float(evidence.alpha[i])
        pairs = steered_prompts(world, alpha * world.coder.directions[latent], latent, slice(3, 6))
        changes = torch.stack([(steered - clean).mean(0) for clean, steered in pairs]).numpy()[:, 1:]
        change = changes.mean(0)
        direction = world.coder.directions[latent]
        with torch.no_grad():
            lens = (head @ norm(direction / direction.pow(2).mean().sqrt()))[1:].topk(4).indices.numpy()
        top = np.argsort(-change)[:6]
        left_out = [np.delete(changes, k, axis=0).mean(0) for k in range(3)]
        assert evidence.lens_auroc[i] == pytest.approx(share(change, lens))
        assert evidence.lens_recall[i] == pytest.approx(np.isin(lens, top).mean())
        assert evidence.lens_auroc_se[i] == pytest.approx(jackknife_by_hand([share(c, lens) for c in left_out]))
        assert evidence.tokens_raised[i, :6].tolist() == (top + 1).tolist()
        assert evidence.tokens_lowered[i, :6].tolist() == (np.argsort(change)[:6] + 1).tolist()
        promised = PROMISED[latent][:3] - 1
        assert evidence.output_auroc[i] == pytest.approx(share(change, promised))
        assert evidence.output_recall[i] == pytest.approx(np.isin(promised, top).mean())
        assert evidence.output_auroc_se[i] == pytest.approx(jackknife_by_hand([share(c, promised) for c in left_out]))
        others = sorted(share(change, tokens[:3] - 1) for other, tokens in PROMISED.items() if other != latent)
        found = sorted(evidence.control_output_auroc[i])
        assert len(found) == 3
        assert all(any(abs(one - other) < 1e-9 for other in others) for one in found)
    assert np.isfinite(evidence.control_lens_auroc[evidence.control_unreachable == 0]).all()
    assert np.isnan(evidence.output_auroc[2::4]).all()
    assert (evidence.tokens_raised[evidence.unreachable == 0] != 0).all()


def share(change: np.ndarray, tokens: np.ndarray) -> float:
    """Share of pairs of a listed and another token in which the listed one rose more."""
    others = np.setdiff1d(np.arange(len(change)), tokens)
    return float((change[tokens][:, None] > change[others]).mean())


def jackknife_by_hand(left_out: list[float]) -> float:
    values = np.array(left_out)
    return float(np.sqrt((len(values) - 1) * values.var()))


def test_a_push_of_no_strength_changes_no_bit(world: World) -> None:
    """Truth: rows beside them that are not edited, and a run in which the place above has no hook at all."""
    lower, upper = (world.subject.hookpoint(name) for name in ("layers.0", "layers.1.mlp"))
    both, alone = UpperLayers(world.subject, [lower, upper]), UpperLayers(world.subject, [lower])
    rows = Rows(np.array([4, 4, 9]), np.array([20, 20, 30]), np.array([0, 0, 0]))
    nothing = torch.zeros(len(rows.row), 48)
    zero_times = 0.0 * world.coder.directions[:2].flatten().expand_as(nothing)
    assert bool(torch.signbit(zero_times).any())
    contexts = [world.contexts[0][:32]]
    plain = alone.run(alone.clean(contexts), rows, nothing[:, :24])
    for delta in (nothing, zero_times):
        assert torch.equal(both.run(both.clean(contexts), rows, delta), plain)
    pushed = nothing.clone()
    pushed[torch.from_numpy(rows.row == 0)] = 1.0
    found = both.run(both.clean(contexts), rows, pushed)
    beside = torch.from_numpy(rows.row != 0)
    assert torch.equal(found[beside], plain[beside])
    assert not torch.equal(found[~beside], plain[~beside])


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
