"""What latents do in a subject whose weights are set by hand (tests/planted_world.py), and ablation to 1e-5 of plain hooks.

Latent 5 raises the logit of ``return`` by GAIN, 6 writes where nobody reads, 7 acts through block 1 alone, on ``(``.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn

from autointerp.statistics import causal_effect
from sae_core.coder import SparseCoder
from sae_core.intervention.ablation import AblationSettings, run_ablation
from sae_core.intervention.evidence import AblationEvidence
from sae_core.intervention.windows import InterventionWindow
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder
from sae_core.subject import SubjectModel
from tests import planted_world
from tests.planted_world import GAIN, VOCABULARY, token_id
from tests.sae_core.intervention_world import VOCAB, WIDTH, World, make_world

KNOWN, UNREAD, LATER = 5, 6, 7
WORD = {KNOWN: "def", UNREAD: "return", LATER: "cls"}
WINDOW = 16


def truly_unread(model: nn.Module, coder: SparseCoder) -> None:
    """Let no norm see UNREAD either: +.5 and -.5 lie in two slots, and its ablation swaps them, mean and length the same."""
    first, second = planted_world.UNREAD, planted_world.KNOWN + 1
    embedding = model.transformer.wte.weight.data[token_id(WORD[UNREAD])]  # type: ignore[union-attr, index]
    assert not model.lm_head.weight[:, [first, second]].any()  # type: ignore[union-attr, index]
    embedding[first], embedding[second] = 0.5, -0.5
    coder.decoder_weight[UNREAD, second] = -1.0


@pytest.fixture(scope="module")
def planted() -> AblationEvidence:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="w19"))
    model, coder = planted_world.build_subject(), planted_world.build_coder()
    truly_unread(model, coder)
    subject = SubjectModel(model, tokenizer, name="planted", revision="test")
    subject.special_ids = frozenset({0})
    rng = np.random.default_rng(1)
    words = np.array([token_id(word) for word in [*WORD.values(), *(f"w{i}" for i in range(8))]])
    contexts = [np.append(0, rng.choice(words, 40)) for _ in range(24)]
    windows = {
        latent: [
            InterventionWindow(c, at, WINDOW, document=c)
            for c, ids in enumerate(contexts)
            for at in (0, 16)
            if (ids[at : at + WINDOW] == token_id(word)).any()
        ][:12]
        for latent, word in WORD.items()
    }
    settings = AblationSettings(control_directions=8, top_tokens=len(VOCABULARY))
    return run_ablation(subject, coder, contexts.__getitem__, len(contexts), windows, settings=settings)


def logit_change(evidence: AblationEvidence, latent: int) -> dict[str, float]:
    """Mean change of each token's logit when the latent is ablated."""
    place = evidence.latents.tolist().index(latent)
    listed = zip(evidence.tokens_lowered[place].tolist(), evidence.logits_lowered[place].tolist(), strict=True)
    return {VOCABULARY[token]: change for token, change in listed}


@pytest.mark.parametrize(("latent", "token"), [(KNOWN, "return"), (LATER, "(")])
def test_a_latent_moves_the_logit_that_was_planted_by_as_much(
    planted: AblationEvidence, latent: int, token: str
) -> None:
    change = logit_change(planted, latent)
    assert next(iter(change)) == token
    # each layer norm on the way takes the mean of the slots and a scale that was set for other vectors: 1% or so
    assert change[token] == pytest.approx(-GAIN, rel=0.015 if latent == KNOWN else 0.03)
    # `return` reads its slot GAIN-fold, and with it the mean (GAIN of D slots) that the norm takes from there
    others = {name: abs(value) for name, value in change.items() if name not in (token, "return")}
    assert max(others.values()) < 0.01 * GAIN
    assert abs(change["return"]) == pytest.approx(GAIN if latent == KNOWN else GAIN * GAIN / planted_world.D, rel=0.25)


def test_effects_stand_where_they_were_planted(planted: AblationEvidence) -> None:
    def effect_of(latent: int) -> tuple[float | None, float | None]:
        rows = planted.rows_of(latent)
        assert len(rows) == 12
        found = causal_effect(planted.kl_firing[rows], planted.control_kl_firing[rows], planted.epsilon)
        return found.low, found.high

    for latent in (KNOWN, LATER):
        low, _ = effect_of(latent)
        assert low is not None
        assert low > 0
    _, high = effect_of(UNREAD)
    assert high is not None
    assert high < 0, "what nobody reads does less than a random push"
    rows = planted.rows_of(UNREAD)
    assert (planted.kl_firing[rows] < planted.epsilon).all()
    unread = causal_effect(planted.kl_firing[rows], planted.control_kl_firing[rows], planted.epsilon)
    assert unread.share_above_floor == 0


def test_a_latent_acts_where_it_was_planted(planted: AblationEvidence) -> None:
    assert planted.path_block.tolist() == [-1, 1]
    share = dict(zip(planted.latents.tolist(), planted.path_share.tolist(), strict=True))
    assert share[KNOWN] == pytest.approx([1.0, 0.0], abs=0.01)
    assert share[LATER] == pytest.approx([0.0, 1.0], abs=0.01)


def linear_coder(into: tuple[str, ...], out: tuple[str, ...]) -> SparseCoder:
    generator = torch.Generator().manual_seed(11)
    return SparseCoder(
        encoder=AffineEncoder(
            torch.randn(4, WIDTH * len(into), generator=generator), torch.zeros(4), JumpReLU(torch.full((4,), 1.5))
        ),
        decoder_weight=torch.randn(4, WIDTH * len(out), generator=generator) * 0.3,
        decoder_bias=torch.randn(WIDTH * len(out), generator=generator),
        hookpoints_in=into,
        hookpoints_out=out,
        num_hooks_in=len(into),
        num_hooks_out=len(out),
        format="test",
        architecture="test",
        fingerprint="test",
    )


CODERS = {
    "sae": (("layers.0",), ("layers.0",)),
    "transcoder": (("layers.1.mlp:input",), ("layers.1.mlp",)),
    "crosscoder": (("layers.0", "layers.1"), ("layers.0", "layers.1")),
}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def double(world: World) -> nn.Module:
    return copy.deepcopy(world.subject.model).double()


@torch.no_grad()
def plain_logits(
    model: nn.Module, tokens: np.ndarray, at: np.ndarray, values: dict[str, torch.Tensor], *, keep: dict | None = None
) -> torch.Tensor:
    """Logits [T, V] of the plain model with modules' outputs put to ``values`` [n, D] at the tokens ``at``."""
    base = model.model  # type: ignore[union-attr]
    with ExitStack() as stack:
        for name, value in values.items():

            def edit(_m: object, _a: object, out: torch.Tensor, value: torch.Tensor = value) -> torch.Tensor:
                out = out.clone()
                out[0, at] = value
                return out

            stack.callback(base.get_submodule(name).register_forward_hook(edit).remove)
        for name in keep or {}:
            module = base.get_submodule(name.removesuffix(":input"))

            def note(_m: object, args: tuple, out: torch.Tensor, name: str = name) -> None:
                keep[name] = (args[0] if name.endswith(":input") else out)[0]  # type: ignore[index]

            stack.callback(module.register_forward_hook(note).remove)
        return model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]  # type: ignore[operator]


@pytest.mark.parametrize("kind", CODERS)
def test_ablation_equals_plain_hooks_to_a_hundred_thousandth(world: World, double: nn.Module, kind: str) -> None:
    """Truth: the plain model in float64, with what passes put to ``clean - z d`` by hand; KL and all logits."""
    into, out = CODERS[kind]
    coder = linear_coder(into, out)
    weight = coder.encoder.weight.double()  # type: ignore[attr-defined]
    clean, states, acts = [], [], []
    for tokens in world.contexts:
        keep: dict[str, torch.Tensor] = dict.fromkeys({*into, *out}, torch.empty(0))
        clean.append(plain_logits(double, tokens, np.empty(0, int), {}, keep=keep))
        pre = torch.cat([keep[name] for name in into], 1) @ weight.T
        acts.append(torch.where(pre > 1.5, pre, 0.0) * torch.from_numpy(tokens != 0)[:, None])
        states.append(keep)
    windows = {
        latent: [
            InterventionWindow(c, at, 8, document=c)
            for c, z in enumerate(acts)
            for at in (0, 8, 16, 24)
            if (z[at : at + 8, latent] > 0).any()
        ][:5]
        for latent in range(4)
    }
    evidence = run_ablation(
        world.subject, coder, world.tokens, 24, windows, settings=AblationSettings(top_tokens=VOCAB)
    )
    assert evidence.num_windows.sum() >= 10
    for place, latent in enumerate(evidence.latents.tolist()):
        changes = []
        for i in evidence.rows_of(latent):
            c, begin = int(evidence.context[i]), int(evidence.position[i])
            inside = (np.arange(len(world.contexts[c])) >= begin) & (np.arange(len(world.contexts[c])) < begin + 8)
            at = np.flatnonzero(inside & (acts[c][:, latent] > 0).numpy())
            push = coder.decoder_weight[latent].double().view(len(out), WIDTH)
            z = acts[c][at, latent][:, None]
            values = {name: states[c][name][at] - z * push[n] for n, name in enumerate(out)}
            edited = plain_logits(double, world.contexts[c], at, values)
            p, q = clean[c][at].log_softmax(-1), edited[at].log_softmax(-1)
            kl = (p.exp() * (p - q)).sum(-1).mean()
            assert evidence.kl_firing[i] == pytest.approx(float(kl), abs=1e-5, rel=1e-5)
            changes.append(edited[at] - clean[c][at])
        if changes:
            mean = torch.cat(changes).mean(0)
            order = evidence.tokens_raised[place]
            np.testing.assert_allclose(evidence.logits_raised[place], mean[order], atol=1e-5)
