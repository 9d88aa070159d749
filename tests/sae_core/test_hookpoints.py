"""Names of other libraries mean the places they mean there."""

from __future__ import annotations

import pytest
import torch

from sae_core.errors import UnknownNameError
from sae_core.hookpoints import Hookpoint, first_tensor, replace_first_tensor
from tests.sae_core.test_intervention_resume import tiny_subject

NAMES = {
    "llama": ("layers", "self_attn", "model"),
    "neox": ("layers", "attention", "gpt_neox"),
    "gpt2": ("h", "attn", "transformer"),
}


@pytest.mark.parametrize("family", list(NAMES))
def test_names_of_all_libraries_are_resolved(family: str) -> None:
    subject = tiny_subject(family)
    blocks, attention, prefix = NAMES[family]
    expected = {
        f"{blocks}.1": f"{blocks}.1",
        f"{prefix}.{blocks}.1": f"{blocks}.1",
        "layers.1": f"{blocks}.1",
        "layers.2.mlp": f"{blocks}.2.mlp",
        f"{blocks}.1:input": f"{blocks}.1:input",
        "blocks.1.hook_resid_post": f"{blocks}.1",
        "blocks.1.hook_resid_pre": f"{blocks}.0",
        "blocks.0.hook_resid_pre": f"{blocks}.0:input",
        "blocks.2.hook_mlp_out": f"{blocks}.2.mlp",
        "blocks.2.hook_attn_out": f"{blocks}.2.{attention}",
    }
    assert {name: str(subject.hookpoint(name)) for name in expected} == expected


@pytest.mark.parametrize("family", list(NAMES))
def test_residual_names_are_the_models_hidden_states(family: str) -> None:
    subject = tiny_subject(family)
    tokens = torch.arange(14).view(2, 7)
    hidden = subject.model(tokens, output_hidden_states=True).hidden_states
    names = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"]
    points = [subject.hookpoint(name) for name in names]
    found = subject.capture(tokens, points)
    for point, expected in zip(points, hidden, strict=False):
        torch.testing.assert_close(found[point], expected)


@pytest.mark.parametrize("name", ["layers.9", "blocks.9.hook_resid_post", "blocks.1.hook_q", "layer.1"])
def test_unknown_names_are_told_the_nearest(name: str) -> None:
    with pytest.raises(UnknownNameError, match="layers"):
        tiny_subject("llama").hookpoint(name)


def test_unknown_side_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=":input"):
        tiny_subject("llama").hookpoint("layers.1:inptu")


def test_blocks_that_give_tuples() -> None:
    x = torch.ones(2)
    assert first_tensor((x, None)) is x
    assert replace_first_tensor((x, 3), x + 1)[1] == 3
    assert str(Hookpoint("layers.1", "input")) == "layers.1:input"
