"""Ablation against a hand-written hook on the plain model, in float64 arithmetic of the definitions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_core.errors import CoderError, CorpusError, InputError
from sae_core.intervention import ablation as ablation_module
from sae_core.intervention.ablation import AblationSettings, run_ablation
from sae_core.intervention.directions import deal_directions, draw_control_directions
from sae_core.intervention.evidence import POOL, AblationEvidence, ControlKind
from sae_core.intervention.windows import InterventionWindow
from tests.sae_core.intervention_world import World, make_world


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def evidence(world: World) -> AblationEvidence:
    windows = {latent: world.windows(latent)[:5] for latent in range(4)}
    return run_ablation(world.subject, world.coder, world.tokens, 24, windows, seed=5)


def log_probs(world: World, tokens: np.ndarray, delta: torch.Tensor) -> np.ndarray:
    """float64 log-probabilities of the plain model with ``delta`` [T, D] added after block 0."""
    handle = world.subject.model.model.layers[0].register_forward_hook(lambda _m, _a, out: out + delta[None])
    try:
        with torch.no_grad():
            logits = world.subject.model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
    finally:
        handle.remove()
    return logits.double().log_softmax(-1).numpy()


def test_every_row_equals_the_definition(world: World, evidence: AblationEvidence) -> None:
    pool = draw_control_directions(world.subject, [world.subject.hookpoint("layers.0")], world.tokens, 24, POOL, 5)
    assert len(evidence.latent) == 20
    for i in range(len(evidence.latent)):
        latent, tokens = int(evidence.latent[i]), world.contexts[evidence.context[i]]
        begin = int(evidence.position[i])
        inside = np.zeros(len(tokens), dtype=bool)
        inside[begin : begin + 8] = True
        firing = inside & (tokens == latent + 1)
        first = int(np.flatnonzero(firing)[0])
        rest = inside & ~firing & (np.arange(len(tokens)) >= first)
        clean = log_probs(world, tokens, torch.zeros(len(tokens), 24))
        d = world.coder.directions[latent]
        controls = pool.vectors[evidence.control_direction[latent].astype(np.int64)]
        assert evidence.push_norm[i] == pytest.approx(2.0 * float(d.norm()), rel=1e-6)
        for r, push in enumerate([d, *(controls * d.norm())]):
            delta = torch.zeros(len(tokens), 24)
            delta[torch.from_numpy(firing)] = -2.0 * push
            edited = log_probs(world, tokens, delta)
            kl = (np.exp(clean) * (clean - edited)).sum(-1)
            found = evidence.kl_firing[i] if r == 0 else evidence.control_kl_firing[i, r - 1]
            assert found == pytest.approx(kl[firing].mean(), rel=2e-4, abs=2e-7)
            if rest.any():
                found = evidence.kl_rest[i] if r == 0 else evidence.control_kl_rest[i, r - 1]
                assert found == pytest.approx(kl[rest].mean(), rel=2e-4, abs=2e-7)
            if r == 0:
                at = np.flatnonzero(firing)
                at = at[at + 1 < len(tokens)]
                assert evidence.num_firing_tokens[i] == firing.sum()
                assert evidence.count_rest[i] == rest.sum()
                assert evidence.count_ce[i] == len(at)
                if len(at):
                    change = clean[at, tokens[at + 1]] - edited[at, tokens[at + 1]]
                    assert evidence.delta_ce[i] == pytest.approx(change.mean(), abs=2e-5)


def test_known_effects_show_and_missing_ones_do_not(evidence: AblationEvidence) -> None:
    kl = [evidence.kl_firing[evidence.rows_of(latent)].mean() for latent in range(4)]
    assert kl[0] > 1e-2
    assert kl[3] > 1e-2
    assert kl[1] < 1e-6
    assert kl[2] <= evidence.noise_floor + 1e-12, "a zero direction is no displacement"
    assert evidence.num_noise_tokens > 0
    assert evidence.noise_floor < 1e-9


def test_the_noise_floor_is_the_largest_kl_of_unedited_rows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a nat per position is what unedited rows are made to show, in every other pass of one context."""
    real = ablation_module.measure

    def noisy(upper: Any, unembedding: Any, references: Any, rows: Any, delta: torch.Tensor) -> Any:
        found = real(upper, unembedding, references, rows, delta)
        moved = delta.abs().amax(-1).numpy()
        edited = np.isin(rows.row, rows.row[moved > 0])
        return found._replace(kl=np.where(edited, found.kl, 0.1 * rows.position))

    monkeypatch.setattr(ablation_module, "measure", noisy)
    windows = {latent: world.windows(latent)[:5] for latent in (0, 3)}
    settings = AblationSettings(contexts_per_pass=1, noise_every=2)
    out = run_ablation(world.subject, world.coder, world.tokens, 24, windows, settings=settings)
    spans: dict[int, list[tuple[int, int]]] = {}
    for latent, mine in windows.items():
        for window in mine:
            stop = window.position + window.length
            firing = np.flatnonzero(world.contexts[window.context] == latent + 1)
            start = int(firing[firing >= window.position][0])
            spans.setdefault(window.context, []).append((start, stop))
    longest = [max(spans[context], key=lambda span: span[1] - span[0]) for context in sorted(spans)[::2]]
    assert len(longest) > 2
    assert out.num_noise_tokens == sum(stop - start for start, stop in longest)
    assert out.noise_floor == pytest.approx(0.1 * max(stop - 1 for _, stop in longest))
    assert out.epsilon == pytest.approx(10 * out.noise_floor)


def test_a_firing_token_without_a_next_one_takes_no_part_in_the_cross_entropy(world: World) -> None:
    tokens = world.contexts[0].copy()
    tokens[-5:] = [9, 1, 8, 7, 1]  # latent 0 fires on 1, the second time at the context's end
    window = InterventionWindow(0, len(tokens) - 5, 5, document=0)
    out = run_ablation(world.subject, world.coder, lambda _: tokens, 1, {0: [window]})
    delta = torch.zeros(len(tokens), 24)
    delta[[-4, -1]] = -2.0 * world.coder.directions[0]
    clean, edited = log_probs(world, tokens, torch.zeros(len(tokens), 24)), log_probs(world, tokens, delta)
    assert (out.num_firing_tokens.tolist(), out.count_ce.tolist()) == ([2], [1])
    change = clean[-4, 8] - edited[-4, 8]
    assert abs(change) > 1e-2
    assert out.delta_ce[0] == pytest.approx(change, abs=2e-5)
    assert out.control_delta_ce.shape == (1, 4)


def test_a_direction_that_nobody_reads_is_below_its_control(world: World) -> None:
    directions = world.coder.directions.clone()
    directions[0] = 0
    directions[0, -1] = 1.0
    # The norms above divide by the length of the whole activation, so the unread coordinate must keep its size:
    # -2 d takes it from +1 to -1.
    coder = dataclasses.replace(world.coder, directions=directions)
    embed = world.subject.model.model.embed_tokens.weight
    before = embed[:, -1].clone()
    embed[:, -1] = 1.0
    try:
        coder = dataclasses.replace(coder, signatures=embed[1:7].clone())
        out = run_ablation(world.subject, coder, world.tokens, 24, {0: world.windows(0)[:5]})
    finally:
        embed[:, -1] = before
    assert out.kl_firing.max() <= max(out.noise_floor, 1e-10)
    assert (out.control_kl_firing > 1e-4).all()


def test_zero_displacement_gives_zero(world: World) -> None:
    out = run_ablation(world.subject, world.coder, world.tokens, 24, {2: world.windows(2)[:3]})
    assert out.kl_firing.max() < 1e-10
    assert out.control_kl_firing.max() < 1e-10, "controls have the latent's length: none"


def test_tokens_raised_are_those_of_the_mean_change(world: World) -> None:
    windows = world.windows(3)[:4]
    out = run_ablation(world.subject, world.coder, world.tokens, 24, {3: windows})
    head = world.subject.model.lm_head.weight
    changes = []
    for window in windows:
        tokens = world.contexts[window.context]
        firing = np.zeros(len(tokens), dtype=bool)
        firing[window.position : window.position + window.length] = True
        firing &= tokens == 4
        final = []
        for scale in (0.0, -2.0):
            delta = torch.zeros(len(tokens), 24)
            delta[torch.from_numpy(firing)] = scale * world.coder.directions[3]
            handle = world.subject.model.model.layers[0].register_forward_hook(lambda _m, _a, o, d=delta: o + d[None])
            final.append(world.subject.base(torch.from_numpy(tokens.astype(np.int64))[None]).last_hidden_state[0])
            handle.remove()
        changes.append(((final[1] - final[0])[torch.from_numpy(firing)]) @ head.T)
    mean = torch.cat(changes).mean(0)
    assert out.tokens_raised[0].tolist() == mean.topk(10).indices.tolist()
    assert out.tokens_lowered[0].tolist() == mean.topk(10, largest=False).indices.tolist()
    np.testing.assert_allclose(out.logits_raised[0], mean.topk(10).values.detach().numpy(), atol=1e-4)


def test_a_latent_does_not_depend_on_its_company_and_a_call_repeats_bit_for_bit(
    world: World, evidence: AblationEvidence
) -> None:
    windows = {latent: world.windows(latent)[:5] for latent in range(4)}
    again = run_ablation(world.subject, world.coder, world.tokens, 24, windows, seed=5)
    for field in dataclasses.fields(again):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(evidence, field.name))
    small = AblationSettings(max_tokens=40, contexts_per_pass=1)
    alone = run_ablation(world.subject, world.coder, world.tokens, 24, {3: windows[3]}, settings=small, seed=5)
    rows = evidence.rows_of(3)
    np.testing.assert_allclose(alone.kl_firing, evidence.kl_firing[rows], rtol=1e-4)
    np.testing.assert_allclose(alone.control_kl_firing, evidence.control_kl_firing[rows], rtol=1e-4)


def test_silent_windows_and_latents_without_windows_are_counted(world: World) -> None:
    elsewhere = world.windows(1)[:1]
    windows = {0: [w for w in elsewhere if 1 not in world.contexts[w.context][w.position : w.position + 8]], 5: []}
    out = run_ablation(world.subject, world.coder, world.tokens, 24, windows)
    assert out.num_windows.tolist() == [0, 0]
    assert out.num_windows_silent.tolist() == [len(windows[0]), 0]
    assert (out.tokens_raised == -1).all()


def test_control_directions_are_unit_and_of_both_kinds(world: World) -> None:
    point = world.subject.hookpoint("layers.0")
    controls = draw_control_directions(world.subject, [point], world.tokens, 24, 5, 1)
    torch.testing.assert_close(controls.vectors.norm(dim=-1), torch.ones(5))
    assert controls.kinds == (ControlKind.ISOTROPIC,) * 3 + (ControlKind.TYPICAL,) * 2
    again = draw_control_directions(world.subject, [point], world.tokens, 24, 5, 1)
    assert torch.equal(controls.vectors, again.vectors)


def test_no_two_control_directions_are_alike(world: World) -> None:
    """At the embedding equal tokens are equal activations: pairs of them, and pairs drawn before, give way to others."""
    point = world.subject.hookpoint("embed_tokens")
    embedding = world.subject.model.model.embed_tokens.weight.detach().double()
    apart = torch.nn.functional.normalize((embedding[1:, None] - embedding[None, 1:]).flatten(0, 1), dim=-1)
    for seed in range(6):
        controls = draw_control_directions(world.subject, [point], world.tokens, 24, POOL, seed)
        assert controls.kinds == (ControlKind.ISOTROPIC,) * 32 + (ControlKind.TYPICAL,) * 32
        cosine = (controls.vectors @ controls.vectors.T).abs() - torch.eye(POOL)
        assert float(cosine.max()) < 0.9999
        typical = controls.vectors[32:].double()
        assert float((typical @ apart.T).amax(-1).min()) > 1 - 1e-6, "each is a difference of two tokens"


def test_a_corpus_of_few_kinds_of_tokens_gives_fewer_typical_directions(world: World) -> None:
    """Three kinds of tokens have three differences, two have one, one has none."""
    point = world.subject.hookpoint("embed_tokens")

    def drawn(kinds: int) -> tuple[ControlKind, ...]:
        contexts = [np.append(0, 1 + ids % kinds) for ids in world.contexts]
        return draw_control_directions(world.subject, [point], contexts.__getitem__, 24, 16, 1).kinds

    assert drawn(3) == (ControlKind.ISOTROPIC,) * 8 + (ControlKind.TYPICAL,) * 3
    assert drawn(2) == (ControlKind.ISOTROPIC,) * 8 + (ControlKind.TYPICAL,)
    with pytest.raises(CorpusError, match="equal activations"):
        drawn(1)
    with pytest.raises(InputError, match=r"8 isotropic, 3 typical.*ask for at most 6"):
        deal_directions(np.arange(2), drawn(3), 8, 0)
    with pytest.raises(CorpusError, match="has 0 tokens"):
        draw_control_directions(world.subject, [point], lambda _: np.array([0, 0]), 24, 16, 1)


def test_the_first_token_of_a_context_is_not_typical() -> None:
    world = make_world()
    embedding = world.subject.model.model.embed_tokens.weight
    with torch.no_grad():
        embedding[:, 5] = 0.0
        embedding[39, 5] = 50.0
    contexts = [np.append(39, ids % 38 + 1) for ids in world.contexts]
    point = world.subject.hookpoint("embed_tokens")
    controls = draw_control_directions(world.subject, [point], contexts.__getitem__, 24, POOL, 2)
    assert float(controls.vectors[32:, 5].abs().max()) == 0


def test_every_latent_has_its_own_controls_half_of_each_kind() -> None:
    kinds = (ControlKind.ISOTROPIC,) * 32 + (ControlKind.TYPICAL,) * 32
    dealt = deal_directions(np.arange(500), kinds, 4, 3)
    assert (dealt[:, :2] < 32).all()
    assert (dealt[:, 2:] >= 32).all()
    assert (dealt[:, 0] != dealt[:, 1]).all()
    assert len({tuple(row) for row in dealt.tolist()}) > 490
    times = np.bincount(dealt.ravel(), minlength=64)  # 31.25 times each on average; 6 standard deviations
    assert times.min() > 0
    assert times.max() < 66
    np.testing.assert_array_equal(deal_directions(np.array([7, 300]), kinds, 4, 3), dealt[[7, 300]])
    assert (deal_directions(np.arange(500), kinds, 4, 4) != dealt).any()
    with pytest.raises(InputError, match="pool of 64"):
        deal_directions(np.arange(2), kinds, 66, 0)


def test_evidence_survives_the_disk_and_parts_join(tmp_path: Path, evidence: AblationEvidence) -> None:
    evidence.save(tmp_path / "a.safetensors")
    back = AblationEvidence.load(tmp_path / "a.safetensors")
    for field in dataclasses.fields(back):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(evidence, field.name))
    both = AblationEvidence.concatenate([evidence, back])
    assert len(both.latent) == 2 * len(evidence.latent)
    with pytest.raises(InputError, match="control_seed"):
        AblationEvidence.concatenate([evidence, dataclasses.replace(evidence, control_seed=9)])


def test_a_coder_of_another_width_is_refused(world: World) -> None:
    coder = dataclasses.replace(world.coder, directions=torch.ones(6, 7))
    with pytest.raises(CoderError, match="7 dimensions"):
        run_ablation(world.subject, coder, world.tokens, 24, {0: []})
