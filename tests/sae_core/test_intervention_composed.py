"""Interventions of coders beyond the plain SAE: several hookpoints, normalised inputs, the stream between attention and MLP.

Truth is the plain model with hooks written out by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from sae_core.attachment import attach
from sae_core.coder import SparseCoder
from sae_core.editing import put
from sae_core.errors import CoderError, SubjectError
from sae_core.intervention.ablation import AblationSettings, run_ablation
from sae_core.intervention.resume import Rows, UpperLayers
from sae_core.intervention.steering import SteeringSettings, run_steering
from sae_core.intervention.windows import InterventionWindow
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder
from sae_core.parts.normalisation import ConstantNorm, LayerNorm, NoNormalisation, Normalisation
from tests.sae_core.intervention_world import WINDOW, World, make_world
from tests.sae_core.test_intervention_resume import VOCAB, tiny_subject
from tests.sae_core.test_intervention_resume import WIDTH as TINY

WIDTH, LATENTS = 24, 5


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


def random_coder(into: tuple[str, ...], out: tuple[str, ...], normalisation: Normalisation) -> SparseCoder:
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(LATENTS, WIDTH * len(into), generator=generator)
    decoder = torch.randn(LATENTS, WIDTH * len(out), generator=generator) * 0.3
    if len(out) > 1:
        decoder[0, WIDTH:] = 0  # a latent of the first place alone
    return SparseCoder(
        encoder=AffineEncoder(weight, torch.zeros(LATENTS), JumpReLU(torch.full((LATENTS,), 1.5))),
        decoder_weight=decoder,
        decoder_bias=torch.randn(WIDTH * len(out), generator=generator),
        normalisation=normalisation,
        hookpoints_in=into,
        hookpoints_out=out,
        num_hooks_in=len(into),
        num_hooks_out=len(out),
        format="test",
        architecture="test",
        fingerprint="test",
    )


def logits_with(
    world: World, tokens: np.ndarray, deltas: dict[int, torch.Tensor], *, from_clean: bool = False
) -> torch.Tensor:
    """Logits with ``deltas`` [T, D] added to the outputs of some blocks, or to what these outputs are without any edit."""
    clean = block_outputs(world, tokens)
    with ExitStack() as stack, torch.no_grad():
        for layer, delta in deltas.items():
            block = world.subject.model.model.layers[layer]

            def edit(
                _m: object, _a: object, out: torch.Tensor, layer: int = layer, delta: torch.Tensor = delta
            ) -> torch.Tensor:
                if not from_clean:
                    return out + delta[None]
                out = out.clone()
                at = sum(d.abs().sum(1) for d in deltas.values()) > 0
                out[0, at] = clean[layer][at] + delta[at]
                return out

            stack.callback(block.register_forward_hook(edit).remove)
        return world.subject.model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]


def block_outputs(world: World, tokens: np.ndarray) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        states = world.subject.model(input_ids=ids, output_hidden_states=True).hidden_states
    return tuple(state[0] for state in states[1:])


def scale_of(kind: Normalisation, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(normalised, scale [T, 1])`` by the definitions, in numpy's words."""
    if isinstance(kind, LayerNorm):
        std = x.sub(x.mean(1, keepdim=True)).pow(2).sum(1, keepdim=True).div(x.shape[1] - 1).sqrt()
        return (x - x.mean(1, keepdim=True)) / (std + 1e-5), std
    if isinstance(kind, ConstantNorm):
        length = x.pow(2).sum(1, keepdim=True).sqrt() / x.shape[1] ** 0.5
        return x / length, length
    return x, torch.ones(len(x), 1)


CASES: list[tuple[tuple[str, ...], tuple[str, ...], Normalisation]] = [
    (("layers.0",), ("layers.0",), LayerNorm()),
    (("layers.0",), ("layers.0",), ConstantNorm()),
    (("layers.0", "layers.1"), ("layers.0", "layers.1"), NoNormalisation()),
    (("layers.0",), ("layers.0", "layers.1", "layers.2"), NoNormalisation()),
]


@pytest.mark.parametrize(
    ("into", "out", "normalisation"), CASES, ids=["layer norm", "constant norm", "crosscoder", "clt"]
)
def test_ablation_equals_the_definition(
    world: World, into: tuple[str, ...], out: tuple[str, ...], normalisation: Normalisation
) -> None:
    coder = random_coder(into, out, normalisation)
    assert isinstance(coder.encoder, AffineEncoder)
    layers_in, layers_out = ([int(name[-1]) for name in names] for names in (into, out))
    acts, scales = [], []
    for tokens in world.contexts:
        states = block_outputs(world, tokens)
        x, scale = scale_of(normalisation, torch.cat([states[i] for i in layers_in], 1))
        pre = x @ coder.encoder.weight.T
        z = torch.where(pre > 1.5, pre, torch.zeros(()))
        z[torch.from_numpy(tokens == 0)] = 0
        acts.append(z)
        scales.append(scale)
    windows = {}
    for latent in range(LATENTS):
        found = [
            InterventionWindow(c, at, len(world.contexts[c][at : at + WINDOW]), document=c)
            for c, z in enumerate(acts)
            for at in range(0, len(z), WINDOW)
            if (z[at : at + WINDOW, latent] > 0).any()
        ]
        windows[latent] = found[:4]
    assert sum(len(w) for w in windows.values()) >= 8
    evidence = run_ablation(world.subject, coder, world.tokens, 24, windows, seed=5, settings=AblationSettings())
    assert len(evidence.latent) == sum(len(w) for w in windows.values())
    largest = 0.0
    for i in range(len(evidence.latent)):
        latent, number, begin = int(evidence.latent[i]), int(evidence.context[i]), int(evidence.position[i])
        tokens = world.contexts[number]
        inside = torch.zeros(len(tokens), dtype=torch.bool)
        inside[begin : begin + WINDOW] = True
        z = torch.where(inside, acts[number][:, latent], torch.zeros(()))
        direction = coder.decoder_weight[latent].view(len(out), WIDTH)
        deltas = {layer: -(z[:, None] * scales[number]) * direction[place] for place, layer in enumerate(layers_out)}
        clean = logits_with(world, tokens, {}).double().log_softmax(-1)
        # a crosscoder's latent is a part of each place that it reads; a transcoder's is added to what the places give
        edited = logits_with(world, tokens, deltas, from_clean=into == out).double().log_softmax(-1)
        kl = (clean.exp() * (clean - edited)).sum(-1)
        expected = float(kl[z > 0].mean())
        assert evidence.kl_firing[i] == pytest.approx(expected, rel=5e-4, abs=2e-7)
        largest = max(largest, expected)
    assert largest > 1e-3


def test_steering_a_crosscoder_meets_its_target(world: World) -> None:
    coder = random_coder(("layers.0", "layers.1"), ("layers.0", "layers.1"), NoNormalisation())
    x = torch.cat([torch.stack(block_outputs(world, t)[:2], 1).flatten(1) for t in world.contexts])
    assert (coder.encode(x) > 0).any(0).all()
    windows = {0: [], 1: []}
    for c, tokens in enumerate(world.contexts):
        z = coder.encode(torch.stack(block_outputs(world, tokens)[:2], 1).flatten(1))
        z[torch.from_numpy(tokens == 0)] = 0
        for at in range(0, len(tokens), WINDOW):
            for latent in windows:
                if (z[at : at + WINDOW, latent] > 0).any():
                    windows[latent].append(InterventionWindow(c, at, len(tokens[at : at + WINDOW]), document=c))
    fit, score = ({k: v[i::2][:4] for k, v in windows.items()} for i in range(2))
    settings = SteeringSettings(targets=(0.1,))
    evidence = run_steering(world.subject, coder, world.tokens, 24, fit, score, settings=settings, seed=1)
    reached = evidence.kl_fit[evidence.unreachable == 0]
    assert len(reached)
    assert np.allclose(reached, 0.1, rtol=settings.tolerance * 1.5)
    assert np.isfinite(evidence.lens_auroc[evidence.unreachable == 0]).all(), (
        "read at the last place, as by the lens stage"
    )
    assert np.isnan(evidence.output_auroc).all(), "nothing was promised"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_edit_between_attention_and_mlp_moves_the_stream_itself(family: str) -> None:
    """Truth: the norm before the MLP reads the edit, and the block's output carries it."""
    subject = tiny_subject(family)
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, VOCAB, 24)
    point = subject.hookpoint("blocks.1.hook_resid_mid")
    rows = Rows(np.array([4]), np.array([15]), np.array([0]))
    delta = torch.from_numpy(rng.normal(size=(11, TINY))).float() * 0.5
    upper = UpperLayers(subject, point)
    final = upper.run(upper.clean([tokens]), rows, delta)
    logits = final @ subject.model.get_output_embeddings().weight.T
    block = subject.base.get_submodule("layers.1" if family == "llama" else "h.1")
    norm = block.post_attention_layernorm if family == "llama" else block.ln_2

    def added(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        hidden[0, 4:15] += delta
        return hidden

    before: Callable[..., object] = lambda _m, args: (added(args[0]), *args[1:])  # noqa: E731
    after: Callable[..., object] = lambda _m, _a, out: added(out)  # noqa: E731
    with ExitStack() as stack, torch.no_grad():
        stack.callback(norm.register_forward_pre_hook(before).remove)
        stack.callback(block.register_forward_hook(after).remove)
        expected = subject.model(input_ids=torch.from_numpy(tokens)[None]).logits[0, 4:15]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_a_crosscoder_attaches_to_its_places_once_each(world: World) -> None:
    coder = random_coder(("layers.0", "layers.1"), ("layers.0", "layers.1"), NoNormalisation())
    attached = attach(world.subject, coder)
    assert [str(h) for h in attached.read] == ["layers.0", "layers.1"]
    with pytest.raises(CoderError, match="name one place twice"):
        attach(world.subject, random_coder(("layers.0", "model.layers.0"), ("layers.0", "layers.1"), NoNormalisation()))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_value_put_between_attention_and_mlp_is_what_both_read(family: str) -> None:
    """Truth: the block's output is the value plus the MLP of its norm; a lower edit does not change that."""
    subject = tiny_subject(family)
    blocks = "layers" if family == "llama" else "h"
    value = torch.randn(1, 12, TINY, generator=torch.Generator().manual_seed(5))
    middle, lower = subject.hookpoint("blocks.1.hook_resid_mid"), subject.hookpoint(f"{blocks}.0")
    after = subject.hookpoint(f"{blocks}.1")
    block = subject.base.get_submodule(f"{blocks}.1")
    norm = block.post_attention_layernorm if family == "llama" else block.ln_2
    with torch.no_grad():
        expected = value + block.mlp(norm(value))
    tokens = torch.arange(12)[None]
    for values in ({middle: value}, {lower: torch.ones_like(value), middle: value}):
        with put(subject, values):
            torch.testing.assert_close(subject.capture(tokens, [after])[after], expected, atol=1e-5, rtol=1e-5)


def test_a_crosscoder_of_two_places_in_one_block_is_not_intervened_on(world: World) -> None:
    """Which of the two is edited first would decide what the other becomes."""
    places = [world.subject.hookpoint(name) for name in ("layers.1", "layers.1.mlp")]
    with pytest.raises(
        SubjectError,
        match=r"two places of one block.*intervention, substitution and steered_ scorers and the output explainer",
    ):
        UpperLayers(world.subject, places, from_clean=True)
    UpperLayers(world.subject, places)
