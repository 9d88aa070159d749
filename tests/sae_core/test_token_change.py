"""Token change against a plain forward hook, and in the planted world, where what latents raise is known."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_core.attachment import AttachedCoder, attach
from sae_core.coder import SparseCoder
from sae_core.errors import NonFiniteError
from sae_core.lens_evidence import TokenChangeEvidence
from sae_core.subject import SubjectModel
from sae_core.token_change import random_prompts, token_change
from tests.planted_world import BOS, NUM_LATENTS, VOCABULARY, token_id
from tests.sae_core.test_extraction import attached, subject, world  # noqa: F401
from tests.sae_core.test_lens import coder_on
from tests.sae_core.tiny_families import VOCAB, tiny_family


def change_by_hand(
    subject: SubjectModel,  # noqa: F811
    modules: list[str],
    weight: torch.Tensor,
    latent: int,
    prompts: np.ndarray,
    *,
    from_clean: bool = False,
) -> tuple[np.ndarray, float]:
    """``([V] mean change less its mean, strength)`` by hooks on the modules of the whole model, a prompt at a time."""
    total = np.zeros(subject.vocab_size)
    width = weight.shape[1] // len(modules)
    found: list[dict[str, torch.Tensor]] = []
    for ids in prompts:
        kept: dict[str, torch.Tensor] = {}
        handles = []
        for name in modules:

            def keep(_m: Any, _a: Any, output: Any, name: str = name, kept: dict[str, torch.Tensor] = kept) -> None:
                kept[name] = (output if isinstance(output, torch.Tensor) else output[0])[0, -1].clone()

            handles.append(subject.base.get_submodule(name).register_forward_hook(keep))
        kept["logits"] = subject.logits(torch.from_numpy(ids.astype(np.int64))[None])[0, -1].double()
        for handle in handles:
            handle.remove()
        found.append(kept)
    size = np.mean([torch.cat([kept[name] for name in modules]).norm().item() for kept in found])
    strength = size / weight[latent].norm().item()
    for ids, kept in zip(prompts, found, strict=True):
        handles = []
        for number, name in enumerate(modules):
            delta = strength * weight[latent, number * width : (number + 1) * width]

            def push(_m: Any, _a: Any, output: Any, delta: torch.Tensor = delta, name: str = name) -> Any:
                whole = output if isinstance(output, torch.Tensor) else output[0]
                whole = whole.clone()
                whole[0, -1] = (kept[name] if from_clean else whole[0, -1]) + delta  # noqa: B023
                return whole if isinstance(output, torch.Tensor) else (whole, *output[1:])

            handles.append(subject.base.get_submodule(name).register_forward_hook(push))
        steered = subject.logits(torch.from_numpy(ids.astype(np.int64))[None])[0, -1].double()
        for handle in handles:
            handle.remove()
        total += (steered - kept["logits"]).numpy()
    total /= len(prompts)
    return total - total.mean(), strength


def check(found: TokenChangeEvidence, row: int, change: np.ndarray, strength: float, left_out: set[int]) -> None:
    allowed = np.array([i for i in range(len(change)) if i not in left_out])
    count = found.raised.shape[1]
    scale = np.abs(change).max()
    assert found.strength[row] == pytest.approx(strength, rel=1e-5)
    np.testing.assert_allclose(found.raised_logits[row], np.sort(change[allowed])[::-1][:count], atol=1e-4 * scale)
    np.testing.assert_allclose(found.lowered_logits[row], np.sort(change[allowed])[:count], atol=1e-4 * scale)
    np.testing.assert_allclose(change[found.raised[row]], found.raised_logits[row], atol=1e-4 * scale)
    np.testing.assert_allclose(change[found.lowered[row]], found.lowered_logits[row], atol=1e-4 * scale)


@pytest.mark.parametrize("family", ["llama", "neox_parallel"])
@pytest.mark.parametrize("batch_tokens", [1024, 10])
def test_against_a_hook_written_by_hand(family: str, batch_tokens: int) -> None:
    tiny = tiny_family(family)
    on_tiny = attach(tiny, coder_on(("layers.1",)))
    told: list[int] = []
    found = token_change(
        tiny, on_tiny, [4, 0, 9], prompts=5, tokens=6, seed=3, batch_tokens=batch_tokens, progress=told.append
    )
    assert found.latents.tolist() == [0, 4, 9]
    assert found.num_prompts == 5
    assert told[-1] == 3
    prompts = random_prompts(tiny, 5, 3)
    for row, latent in enumerate(found.latents):
        change, strength = change_by_hand(tiny, ["layers.1"], on_tiny.coder.decoder_weight, int(latent), prompts)
        check(found, row, change, strength, set())


def test_several_places_are_steered_together() -> None:
    tiny = tiny_family("llama")
    on_tiny = attach(tiny, coder_on(("layers.0", "layers.1")))
    found = token_change(tiny, on_tiny, range(3), prompts=4, tokens=5)
    prompts = random_prompts(tiny, 4, 0)
    for row in range(3):
        change, strength = change_by_hand(
            tiny, ["layers.0", "layers.1"], on_tiny.coder.decoder_weight, row, prompts, from_clean=True
        )
        check(found, row, change, strength, set())


def test_a_latent_does_not_depend_on_the_others_of_its_chunk() -> None:
    tiny = tiny_family("llama")
    on_tiny = attach(tiny, coder_on(("layers.1",)))
    one = token_change(tiny, on_tiny, [7], prompts=6, tokens=4, seed=1)
    many = token_change(tiny, on_tiny, range(20), prompts=6, tokens=4, seed=1)
    np.testing.assert_array_equal(one.raised[0], many.raised[7])
    np.testing.assert_allclose(one.raised_logits[0], many.raised_logits[7], atol=1e-5)
    other = token_change(tiny, on_tiny, [7], prompts=6, tokens=4, seed=2)
    assert np.abs(other.raised_logits[0] - one.raised_logits[0]).max() > 1e-3


def test_a_row_of_zeros_changes_nothing_and_nan_is_an_error() -> None:
    tiny = tiny_family("llama")
    on_tiny = attach(tiny, coder_on(("layers.1",)))
    weight = on_tiny.coder.decoder_weight.clone()
    weight[1] = 0
    changed: SparseCoder = replace(on_tiny.coder, decoder_weight=weight)
    found = token_change(tiny, replace(on_tiny, coder=changed), [0, 1], prompts=3, tokens=4)
    assert found.strength[1] == 0
    assert (found.raised[1] == -1).all()
    assert (found.lowered_logits[1] == 0).all()
    assert (found.raised[0] >= 0).all()
    weight[1] = torch.nan
    with pytest.raises(NonFiniteError, match=r"steered at layers\.1"):
        token_change(tiny, replace(on_tiny, coder=changed), [1], prompts=3)


def test_prompts_are_uniform_ordinary_tokens_behind_the_bos(subject: SubjectModel) -> None:  # noqa: F811
    prompts = random_prompts(subject, 2000, 5)
    assert prompts.shape == (2000, 9)
    assert (prompts[:, 0] == token_id(BOS)).all()
    assert not (prompts[:, 1:] == token_id(BOS)).any()
    counts = np.bincount(prompts[:, 1:].ravel(), minlength=len(VOCABULARY))[1:]
    expected = 16_000 / (len(VOCABULARY) - 1)
    assert ((counts - expected) ** 2 / expected).sum() < 80  # chi-square with 36 degrees of freedom: p = 4e-5
    assert random_prompts(tiny_family("llama"), 3, 5).shape == (3, 8)  # no BOS rule
    assert (random_prompts(tiny_family("llama"), 3, 5) < VOCAB).all()


def test_capped_logits_are_looked_at_before_the_cap() -> None:
    """Truth: the same model with its logits' cap taken off; its capped attention stays."""
    tiny = copy.deepcopy(tiny_family("gemma2"))
    on_tiny = attach(tiny, coder_on(("layers.1",)))
    prompts = random_prompts(tiny, 5, 3)
    tiny.config.final_logit_softcapping = 1.0
    found = token_change(tiny, on_tiny, [0, 4], prompts=5, tokens=6, seed=3)
    tiny.config.final_logit_softcapping = None
    for row, latent in enumerate(found.latents):
        change, strength = change_by_hand(tiny, ["layers.1"], on_tiny.coder.decoder_weight, int(latent), prompts)
        check(found, row, change, strength, set())


def test_in_the_planted_world(
    subject: SubjectModel,  # noqa: F811
    attached: AttachedCoder,  # noqa: F811
    tmp_path: Path,
) -> None:
    found = token_change(subject, attached, range(NUM_LATENTS), prompts=8, tokens=3)
    prompts = random_prompts(subject, 8, 0)
    for latent in (0, 5, 7, 12):
        change, strength = change_by_hand(subject, ["h.0"], attached.coder.decoder_weight, latent, prompts)
        check(found, latent, change, strength, {token_id(BOS)})
    assert found.raised[5, 0] == token_id("return")
    assert found.raised[7, 0] == token_id("(")  # by way of block 1's MLP, which no lens sees
    found.save(tmp_path / "change.safetensors")
    back = TokenChangeEvidence.load(tmp_path / "change.safetensors")
    np.testing.assert_array_equal(back.raised, found.raised)
    assert back.num_prompts == 8
