"""Which way an edit reaches the logits, against the plain model's own hidden states and a Jacobian by autograd."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from sae_core.intervention.ablation import run_ablation
from sae_core.intervention.windows import InterventionWindow
from sae_core.subject import SubjectModel
from tests.sae_core.intervention_world import HandMadeCoder
from tests.sae_core.tiny_families import DEPTH, FAMILIES, VOCAB, WIDTH, tiny_family

CONTEXTS = [np.append(0, np.random.default_rng(c).integers(1, VOCAB, 20)) for c in range(4)]
LATENT = 2
"""Fires on token 3 with activation 2."""


def coder_at(subject: SubjectModel, embedding: str, places: tuple[str, ...]) -> HandMadeCoder:
    rng = np.random.default_rng(5)
    with torch.no_grad():
        signatures = torch.cat([subject.base.get_submodule(embedding)(torch.tensor([f + 1])) for f in range(6)])
    directions = torch.from_numpy(rng.normal(size=(6, WIDTH * len(places)))).float()
    return HandMadeCoder(signatures, directions, (embedding,), places)


def states(subject: SubjectModel, tokens: np.ndarray, edits: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], ...]:
    """What enters each block and the final norm, [T, D] each, with ``edits`` [T, D] added to modules' outputs."""
    family = FAMILIES[subject.name]
    watched = [family.block(layer) for layer in range(DEPTH)] + [family.name(family.final_norm)]
    found: dict[str, torch.Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for name, delta in edits.items():

            def edit(_m: object, _a: object, out: object, delta: torch.Tensor = delta) -> object:
                return (out[0] + delta, *out[1:]) if isinstance(out, tuple) else out + delta

            stack.callback(subject.base.get_submodule(name).register_forward_hook(edit).remove)
        for name in watched:

            def note(_m: object, args: tuple, kwargs: dict, name: str = name) -> None:
                found[name] = (args[0] if args else kwargs["hidden_states"])[0]

            module = subject.base.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        subject.base(torch.from_numpy(tokens.astype(np.int64))[None])
    return [found[name] for name in watched]


def expected_shares(subject: SubjectModel, coder: HandMadeCoder, place: str, layer: int, kind: str) -> np.ndarray:
    """Projections of the parts on the whole over all firing tokens, by the Jacobian of norm and centred head.

    ``kind``: what the edit at ``place`` in block ``layer`` is: the block's output, something that is added to the
    stream within the block, or something else inside of it.
    """
    family = FAMILIES[subject.name]
    norm = subject.base.get_submodule(family.name(family.final_norm))
    head = subject.model.get_output_embeddings().weight.detach()
    head = head - head.mean(0)
    numerator, denominator = np.zeros(DEPTH + 1), 0.0
    for tokens in CONTEXTS:
        firing = torch.from_numpy(tokens == LATENT + 1)
        delta = torch.where(firing[:, None], -2.0 * coder.directions[LATENT], torch.zeros(()))
        clean, edited = states(subject, tokens, {}), states(subject, tokens, {place: delta})
        for t in np.flatnonzero(firing.numpy()):
            jacobian = torch.autograd.functional.jacobian(lambda x: head @ norm(x), clean[-1][t])
            change = [(b - a)[t] for a, b in zip(clean, edited, strict=True)]
            made = {i: change[i + 1] - change[i] for i in range(DEPTH)}
            direct = torch.zeros(WIDTH)
            if kind in ("block", "added"):
                made[layer], direct = made[layer] - delta[t], delta[t]
            else:
                made[layer], direct = torch.zeros(WIDTH), made[layer]
            parts = torch.stack([direct, *made.values()]) @ jacobian.T
            whole = parts.sum(0)
            numerator += (parts @ whole).detach().numpy()
            denominator += float(whole @ whole)
    return numerator / denominator


@pytest.mark.parametrize("key", ["gpt2", "neox_parallel", "neox_sequential", "llama", "qwen3"])
@pytest.mark.parametrize("place", ["block", "mlp", "attention_out", "norm_2", "embedding"])
def test_shares_equal_the_plain_models_own_states(key: str, place: str) -> None:
    subject, family = tiny_family(key), FAMILIES[key]
    name = {
        "block": family.block(1),
        "mlp": family.block(1, family.mlp),
        "attention_out": family.block(1, f"{family.attention}.{family.attention_out}"),
        "norm_2": family.block(1, family.norm_2),
        "embedding": family.name(family.embedding),
    }[place]
    coder = coder_at(subject, family.name(family.embedding), (name,))
    windows = [InterventionWindow(c, 0, len(ids), document=c) for c, ids in enumerate(CONTEXTS)]
    out = run_ablation(subject, coder, CONTEXTS.__getitem__, len(CONTEXTS), {LATENT: windows})
    assert out.num_windows.sum() >= 2
    if place == "embedding":
        assert out.path_block.tolist() == [-1, 0, 1, 2]
        return
    kind = {"block": "block", "norm_2": "inside"}.get(place, "added")
    expected = expected_shares(subject, coder, name, 1, kind)
    first = int(out.path_block[1])
    assert out.path_block.tolist() == [-1, *range(first, DEPTH)]
    assert expected[1 : 1 + first] == pytest.approx(np.zeros(first), abs=1e-4), "blocks below the edit do nothing"
    assert out.path_share[0].tolist() == pytest.approx([expected[0], *expected[1 + first :]], abs=1e-4)
    assert out.path_share[0].sum() == pytest.approx(1.0, abs=1e-5)


def test_at_the_last_block_all_is_direct() -> None:
    subject, family = tiny_family("llama"), FAMILIES["llama"]
    coder = coder_at(subject, "embed_tokens", (family.block(DEPTH - 1),))
    windows = [InterventionWindow(c, 0, len(ids), document=c) for c, ids in enumerate(CONTEXTS)]
    out = run_ablation(subject, coder, CONTEXTS.__getitem__, len(CONTEXTS), {LATENT: windows})
    assert out.path_block.tolist() == [-1]
    assert out.path_share[0].tolist() == pytest.approx([1.0])


def test_a_crosscoder_is_direct_from_its_last_place_on() -> None:
    """Each place is put to the clean activation and the push: what lies between two places has no part in it."""
    subject, family = tiny_family("llama"), FAMILIES["llama"]
    one = coder_at(subject, "embed_tokens", (family.block(1),))
    places = (family.block(0), family.block(1))
    directions = torch.cat([torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1)), one.directions], 1)
    both = _Crosscoder(one.signatures, directions, places, places, subject)
    windows = [InterventionWindow(c, 0, len(ids), document=c) for c, ids in enumerate(CONTEXTS)]
    # One firing token a window and nothing behind it measured: attention cannot carry one edit to another.
    alone, crossed = (
        run_ablation(subject, coder, CONTEXTS.__getitem__, len(CONTEXTS), {LATENT: windows[:1]})
        for coder in (one, both)
    )
    assert (CONTEXTS[0] == LATENT + 1).sum() == 1
    assert alone.path_block.tolist() == [-1, 2]
    assert crossed.path_block.tolist() == [-1, 1, 2]
    assert crossed.path_share[0, 1] == 0.0
    assert crossed.path_share[0, [0, 2]].tolist() == pytest.approx(alone.path_share[0].tolist(), abs=1e-4)


class _Crosscoder:
    """Fires as the hand-made coder does, but told by the outputs of two blocks."""

    def __init__(
        self,
        signatures: torch.Tensor,
        directions: torch.Tensor,
        read: tuple[str, ...],
        write: tuple[str, ...],
        subject: SubjectModel,
    ) -> None:
        self.directions, self.hookpoints_in, self.hookpoints_out = directions, read, write
        points = [subject.hookpoint(name) for name in read]
        caught = subject.capture(torch.from_numpy(CONTEXTS[0].astype(np.int64))[None], points)
        self.states = torch.cat([caught[p][0] for p in points], -1)

    def encode(self, x_ND: torch.Tensor) -> torch.Tensor:
        at = (x_ND[:, None] - self.states).abs().amax(-1).argmin(1)
        tokens = torch.from_numpy(CONTEXTS[0])[at]
        return torch.stack([(tokens == f + 1) * 2.0 for f in range(6)], 1)

    def output_scale(self, x: torch.Tensor) -> None:
        return None
