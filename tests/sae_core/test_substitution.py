"""Substitution against hand-written hooks on the plain model, and its two ends: the truth and ablation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_core.errors import InputError
from sae_core.intervention.ablation import run_ablation
from sae_core.intervention.substitution import (
    JointContext,
    SubstitutionRow,
    SubstitutionSettings,
    TokenPredictions,
    run_joint_substitution,
    run_substitution,
)
from sae_core.intervention.substitution_evidence import OWN, SubstitutionEvidence
from sae_core.intervention.windows import InterventionWindow
from tests.sae_core.intervention_world import World, make_world


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


def true_activations(world: World, latent: int, window: InterventionWindow) -> np.ndarray:
    """By the coder's definition: 2 wherever token ``latent + 1`` stands."""
    tokens = world.contexts[window.context][window.position : window.position + window.length]
    return np.where(tokens == latent + 1, 2.0, 0.0).astype(np.float32)


def hooked(world: World, tokens: np.ndarray, delta: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """KL [T] and change of cross-entropy [T - 1] of the plain model with ``delta`` [T, D] added after block 0, float64."""
    outputs = []
    for edit in (torch.zeros_like(delta), delta):
        handle = world.subject.model.model.layers[0].register_forward_hook(lambda _m, _a, o, e=edit: o + e[None])
        try:
            with torch.no_grad():
                logits = world.subject.model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
        finally:
            handle.remove()
        outputs.append(logits.double().log_softmax(-1).numpy())
    clean, edited = outputs
    following = tokens[1:]
    change = clean[np.arange(len(following)), following] - edited[np.arange(len(following)), following]
    return (np.exp(clean) * (clean - edited)).sum(-1), change


def delta_of(world: World, context: int, changes: dict[int, np.ndarray]) -> torch.Tensor:
    """[T, D] ``sum_f change_f d_f`` of one context; ``changes`` [T] by latent."""
    delta = torch.zeros(len(world.contexts[context]), world.coder.directions.shape[1])
    for latent, change in changes.items():
        delta += torch.from_numpy(change)[:, None].float() * world.coder.directions[latent]
    return delta


def in_context(world: World, window: InterventionWindow, values: np.ndarray) -> np.ndarray:
    """[T] values at a window's place, zeros elsewhere."""
    whole = np.zeros(len(world.contexts[window.context]))
    whole[window.position : window.position + window.length] = values
    return whole


def test_a_row_equals_a_hook_that_somebody_wrote(world: World) -> None:
    rng = np.random.default_rng(1)
    windows = [(latent, window) for latent in (0, 3, 4) for window in world.windows(latent)[:4]]
    # windows in which latent 3 is silent: the prediction is all that is written
    silent = [InterventionWindow(c, 8, 8, c) for c in range(24) if not (world.contexts[c][8:16] == 4).any()][:3]
    windows += [(3, window) for window in silent]
    rows = [
        SubstitutionRow(
            latent, window, (rng.random(window.length) * 3 * (rng.random(window.length) < 0.4)).astype("f4")
        )
        for latent, window in windows
    ]
    found = run_substitution(world.subject, world.coder, world.tokens, rows)
    for number, row in enumerate(rows):
        tokens = world.contexts[row.window.context]
        special = tokens[row.window.position : row.window.position + row.window.length] == 0
        true = true_activations(world, row.latent, row.window)
        change = np.where(special, 0, row.predicted - true)
        delta = delta_of(world, row.window.context, {row.latent: in_context(world, row.window, change)})
        kl, ce = hooked(world, tokens, delta)
        inside = slice(row.window.position, row.window.position + row.window.length)
        assert found.kl[number] == pytest.approx(kl[inside].sum(), abs=1e-5, rel=1e-4)
        assert found.delta_ce[number] == pytest.approx(ce[inside].sum(), abs=2e-5, rel=1e-4)
        assert found.num_firing[number] == np.count_nonzero(true)
    assert (found.kl > 1e-3).all(), "every row was edited"


def test_the_truth_costs_nothing_and_nothing_costs_what_ablation_does(world: World) -> None:
    windows = world.windows(3)[:6]
    truth = [SubstitutionRow(3, w, true_activations(world, 3, w)) for w in windows]
    nothing = [SubstitutionRow(3, w, np.zeros(w.length, "f4")) for w in windows]
    again = [SubstitutionRow(3, w, np.zeros(w.length, "f4")) for w in windows]
    found = run_substitution(world.subject, world.coder, world.tokens, truth + nothing + again)
    kl = found.kl.reshape(3, -1)
    assert (kl[0] == 0).all()
    assert (found.delta_ce.reshape(3, -1)[0] == 0).all()
    assert (kl[1] == kl[2]).all(), "exactly: the same edit is run once"
    ablated = run_ablation(world.subject, world.coder, world.tokens, 24, {3: windows})
    expected = ablated.kl_firing * ablated.num_firing_tokens + ablated.kl_rest * ablated.count_rest
    order = {(int(c), int(p)): e for c, p, e in zip(ablated.context, ablated.position, expected, strict=True)}
    np.testing.assert_allclose(kl[1], [order[w.context, w.position] for w in windows], rtol=1e-4, atol=1e-7)


def test_a_label_that_fires_everywhere_costs_in_silent_windows(world: World) -> None:
    silent = [InterventionWindow(c, 8, 8, c) for c in range(24) if not (world.contexts[c][8:16] == 4).any()][:4]
    rows = [SubstitutionRow(3, w, np.full(w.length, 2.0, "f4")) for w in silent]
    rows += [SubstitutionRow(3, w, np.zeros(w.length, "f4")) for w in silent]
    kl = run_substitution(world.subject, world.coder, world.tokens, rows).kl.reshape(2, -1)
    assert (kl[0] > 1e-2).all()
    assert (kl[1] == 0).all()


def test_special_tokens_are_left_alone(world: World) -> None:
    window = InterventionWindow(0, 0, 8, 0)
    assert world.contexts[0][0] in world.subject.special_ids
    predicted = np.zeros(8, "f4")
    predicted[0] = 5.0
    plain = run_substitution(world.subject, world.coder, world.tokens, [SubstitutionRow(5, window, predicted)])
    without = [SubstitutionRow(5, window, np.zeros(8, "f4"))]
    assert plain.kl[0] == run_substitution(world.subject, world.coder, world.tokens, without).kl[0]


def test_small_batches_give_the_same(world: World) -> None:
    rows = [
        SubstitutionRow(latent, w, np.full(w.length, 1.0, "f4")) for latent in (0, 3) for w in world.windows(latent)[:5]
    ]
    one = run_substitution(world.subject, world.coder, world.tokens, rows)
    small = SubstitutionSettings(max_tokens=10, contexts_per_pass=1)
    other = run_substitution(world.subject, world.coder, world.tokens, rows[::-1], settings=small)
    np.testing.assert_allclose(one.kl, other.kl[::-1], rtol=1e-4, atol=1e-7)


def nothing() -> TokenPredictions:
    return TokenPredictions(np.zeros(0, "i8"), np.zeros(0, "i8"), np.zeros(0, "f4"))


def everything_true(world: World, context: int, latents: list[int]) -> TokenPredictions:
    found = [(p, f) for f, latent in enumerate(latents) for p in np.flatnonzero(world.contexts[context] == latent + 1)]
    position, latent = np.array(found, dtype=np.int64).reshape(-1, 2).T
    return TokenPredictions(position, latent, np.full(len(position), 2.0, "f4"))


def test_all_at_once_equals_a_hook_that_somebody_wrote(world: World) -> None:
    latents, rng = [0, 3, 4], np.random.default_rng(2)
    contexts, guesses = [], []
    for c in range(6):
        scored = rng.random(len(world.contexts[c])) < 0.7
        at = rng.permutation(np.arange(1, len(world.contexts[c])))[:5]
        guess = TokenPredictions(np.sort(at), rng.integers(3, size=5), rng.random(5).astype("f4") * 3)
        guesses.append(guess)
        contexts.append(JointContext(c, scored, [guess, nothing(), everything_true(world, c, latents)]))
    means = np.array([1.5, 2.5, 2.0], dtype=np.float32)
    found = run_joint_substitution(
        world.subject,
        world.coder,
        world.tokens,
        np.array(latents),
        contexts,
        means=means,
        settings=SubstitutionSettings(max_tokens=100),
    )
    for c, one in enumerate(contexts):
        tokens = world.contexts[c]
        true = {latent: np.where(tokens == latent + 1, 2.0, 0.0) for latent in latents}
        filled = {latent: np.zeros(len(tokens)) for latent in latents}
        for p, f, a in zip(guesses[c].position, guesses[c].latent, guesses[c].activation, strict=True):
            filled[latents[f]][p] = a
        averaged = {latent: np.where(true[latent] > 0, means[f], 0) for f, latent in enumerate(latents)}
        ways = [filled, {latent: np.zeros(len(tokens)) for latent in latents}, true, averaged]
        kept = one.scored[:-1]
        assert found.num_tokens[c] == kept.sum()
        for v, way in enumerate(ways):
            delta = delta_of(world, c, {latent: way[latent] - true[latent] for latent in latents})
            kl, ce = hooked(world, tokens, delta)
            assert found.kl[c, v] == pytest.approx(kl[:-1][kept].sum(), abs=1e-5, rel=2e-4)
            assert found.delta_ce[c, v] == pytest.approx(ce[kept].sum(), abs=5e-5, rel=2e-4)
        with torch.no_grad():
            logits = world.subject.model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
        own = -logits.double().log_softmax(-1).numpy()[np.arange(len(kept)), tokens[1:]]
        assert found.clean_ce[c] == pytest.approx(own[kept].sum(), rel=1e-5)
    assert (found.kl[:, 2] == 0).all(), "the truth is no edit"


def test_all_at_once_with_one_latent_is_that_latent_alone(world: World) -> None:
    rows, contexts = [], []
    for c in range(8):
        tokens = world.contexts[c]
        predicted = np.where(np.arange(len(tokens)) % 5 == 3, 1.7, 0.0).astype("f4")
        rows.append(SubstitutionRow(3, InterventionWindow(c, 0, len(tokens), c), predicted))
        at = np.flatnonzero(predicted)
        one = TokenPredictions(at, np.zeros(len(at), "i8"), predicted[at])
        contexts.append(JointContext(c, np.ones(len(tokens), bool), [one]))
    alone = run_substitution(world.subject, world.coder, world.tokens, rows)
    joint = run_joint_substitution(world.subject, world.coder, world.tokens, np.array([3]), contexts)
    last = []  # the joint sums leave out the last token of a context, which has no next one
    for row, c in zip(rows, range(8), strict=True):
        change = row.predicted - np.where(world.contexts[c] == 4, 2.0, 0.0)
        last.append(hooked(world, world.contexts[c], delta_of(world, c, {3: change}))[0][-1])
    np.testing.assert_allclose(joint.kl[:, 0] + last, alone.kl, atol=1e-5)
    np.testing.assert_allclose(joint.delta_ce[:, 0], alone.delta_ce, atol=2e-5)


def test_ways_that_say_the_same_have_the_same_numbers(world: World) -> None:
    contexts = [JointContext(c, np.ones(37, bool), [nothing(), nothing()]) for c in range(4)]
    found = run_joint_substitution(world.subject, world.coder, world.tokens, np.array([0, 3]), contexts)
    assert (found.kl[:, 0] == found.kl[:, 1]).all()
    assert found.kl[:, 0].max() > 1e-3


def test_slices_of_tokens_change_nothing(world: World) -> None:
    latents = list(range(world.coder.directions.shape[0]))
    rng, contexts = np.random.default_rng(4), []
    for c in range(4):
        at = np.sort(rng.integers(1, 37, size=60))
        at, latent = np.unique(np.stack([at, rng.integers(len(latents), size=60)]), axis=1)
        guess = TokenPredictions(at, latent, rng.random(len(at)).astype("f4") * 3)
        late = TokenPredictions(np.array([35]), np.array([3]), np.ones(1, "f4"))  # no edit but there
        ways = [guess, nothing(), everything_true(world, c, latents), nothing(), late]
        contexts.append(JointContext(c, np.ones(37, bool), ways))
    means = np.full(len(latents), 1.5, dtype=np.float32)
    encoded = []

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(world.coder, name)

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            encoded.append(len(x))
            return world.coder.encode(x)

    def run(cells: int) -> np.ndarray:
        settings = SubstitutionSettings(cells_per_slice=cells)
        coder: Any = Counting()
        found = run_joint_substitution(
            world.subject, coder, world.tokens, np.array(latents), contexts, means=means, settings=settings
        )
        return np.stack([found.kl, found.delta_ce])

    whole = run(2**23)
    assert max(encoded) == 37
    assert whole[0, :, [0, 1, 4, 5]].min() > 1e-3
    for cells in (1, 5 * len(latents)):
        encoded.clear()
        sliced = run(cells)
        assert max(encoded) == max(1, cells // len(latents)), "no more than that is held at once"
        np.testing.assert_allclose(sliced, whole, rtol=1e-4, atol=1e-6)
        assert (sliced[0, :, 2] == 0).all()
        assert (sliced[:, :, 1] == sliced[:, :, 3]).all(), "the same edit is still run once"
    assert (whole[0, :, 1] != whole[0, :, 4]).all()


def test_wrong_predictions_are_refused(world: World) -> None:
    window = world.windows(3)[0]
    with pytest.raises(InputError, match="one for each token"):
        run_substitution(world.subject, world.coder, world.tokens, [SubstitutionRow(3, window, np.zeros(3, "f4"))])
    bad = np.full(window.length, np.nan, "f4")
    with pytest.raises(InputError, match="finite"):
        run_substitution(world.subject, world.coder, world.tokens, [SubstitutionRow(3, window, bad)])
    uneven = [JointContext(0, np.ones(37, bool), [nothing()]), JointContext(1, np.ones(37, bool), [])]
    with pytest.raises(InputError, match="the same ways"):
        run_joint_substitution(world.subject, world.coder, world.tokens, np.array([3]), uneven)


def test_the_output_scale_multiplies_predictions_and_truth_alike(world: World) -> None:
    @dataclasses.dataclass(frozen=True)
    class Scaled:
        inner: object

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def output_scale(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x),), 0.5)

    window = world.windows(3)[0]
    predicted = np.full(window.length, 3.0, "f4")
    half = dataclasses.replace(world.coder, directions=world.coder.directions * 0.5)
    row = [SubstitutionRow(3, window, predicted)]
    scaled = run_substitution(world.subject, Scaled(world.coder), world.tokens, row)  # type: ignore[arg-type]
    assert scaled.kl[0] == pytest.approx(run_substitution(world.subject, half, world.tokens, row).kl[0], rel=1e-4)
    context = [JointContext(window.context, np.ones(37, bool), [nothing()])]
    joint = [
        run_joint_substitution(world.subject, coder, world.tokens, np.array([3]), context).kl[0, 0]  # type: ignore[arg-type]
        for coder in (Scaled(world.coder), half)
    ]
    assert joint[0] == pytest.approx(joint[1], rel=1e-4)


def test_evidence_survives_the_disk(tmp_path: Path) -> None:
    some = np.arange(3)
    evidence = SubstitutionEvidence(
        latent=some.astype("i4"), arm=np.zeros(3, "u1"), fires=np.array([1, 1, 0], "u1"), document=some.astype("i4"),
        context=some.astype("i4"), position=some.astype("i4"), kl=some * 0.5, kl_ablated=some * 1.0,
        delta_ce=some * 0.1, delta_ce_ablated=some * 0.2, latents=some.astype("i4"), explainer=np.zeros(3, "i4"),
        donor=np.full(3, -1, "i4"), share_firing=np.full(3, 0.1), share_silent=np.full((3, 2), 0.2),
        share_spread=np.zeros((3, 2)), share_of_one=np.zeros(3), num_lost=np.zeros(3, "i4"), explainers=["pattern"],
    )  # fmt: skip
    evidence.save(tmp_path / "a.safetensors")
    back = SubstitutionEvidence.load(tmp_path / "a.safetensors")
    assert back.explainers == ["pattern"]
    assert back.rows_of(1, OWN, True).tolist() == [1]
    np.testing.assert_array_equal(back.kl, evidence.kl)
