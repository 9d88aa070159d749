"""The compiled selection against its torch twins and against sorting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_core.parts import compiled_selection
from sae_core.parts.activation import Activation, JumpReLU, ReLU, SparseActivations, TopK, without_zeros
from sae_core.parts.encoder import AffineEncoder

KINDS = ("normal", "ties", "positive", "negative", "zeros", "one large")


def pre_activations(seed: int, rows: int, latents: int, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(rows, latents, generator=generator)
    if kind == "ties":
        return torch.randint(-2, 3, (rows, latents), generator=generator).float()
    if kind == "zeros":
        return torch.where(pre > 1, pre, torch.zeros(()))
    if kind == "one large":
        return pre * torch.where(torch.arange(latents) == seed % latents, 1e6, 1e-6)
    return {"normal": pre, "positive": pre.abs(), "negative": -pre.abs()}[kind]


def sorted_entries(acts: SparseActivations, latents: int) -> tuple[list[int], list[float]]:
    assert (acts.token.diff() >= 0).all()
    order = (acts.token * latents + acts.latent).argsort()
    return (acts.token * latents + acts.latent)[order].tolist(), acts.value[order].tolist()


@given(
    st.integers(0, 10**6),
    st.integers(0, 150),
    st.sampled_from([1, 2, 5, 15, 16, 17, 63, 64, 65, 200, 1000]),
    st.integers(1, 70),
    st.sampled_from(KINDS),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_top_k_takes_the_largest(seed: int, rows: int, latents: int, k: int, kind: str, rectify: bool) -> None:
    k = min(k, latents)
    pre = pre_activations(seed, rows, latents, kind)
    found = compiled_selection.top_k(pre, k, rectify)
    # equal values: the smallest latents
    order = np.argsort(-pre.numpy(), axis=1, kind="stable")[:, :k]
    expected = {
        (n, int(f)): float(pre[n, f])
        for n in range(rows)
        for f in order[n]
        if pre[n, f] > 0 or (pre[n, f] < 0 and not rectify)
    }
    assert (
        dict(zip(zip(found.token.tolist(), found.latent.tolist(), strict=True), found.value.tolist(), strict=True))
        == expected
    )
    assert len(found.token) == len(expected)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_every_row_is_some_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(compiled_selection, "_ROWS_A_THREAD", 4)
    pre = pre_activations(5, 53, 200, "normal")
    found = SparseActivations(*compiled_selection.top_k(pre, 6, True))
    assert sorted_entries(found, 200) == sorted_entries(without_zeros(TopK(6).dense(pre)), 200)
    found = SparseActivations(*compiled_selection.above(pre, torch.tensor([1.0]), True))
    assert sorted_entries(found, 200) == sorted_entries(without_zeros(JumpReLU(torch.tensor([1.0])).dense(pre)), 200)


@given(
    st.integers(0, 10**6),
    st.integers(0, 100),
    st.sampled_from([1, 5, 127, 128, 129, 400]),
    st.sampled_from(KINDS),
    st.sampled_from(["one", "own", "negative"]),
    st.booleans(),
    st.integers(1, 8),
)
@settings(max_examples=150, deadline=None)
def test_above_takes_what_exceeds(
    seed: int, rows: int, latents: int, kind: str, floors: str, rectify: bool, room: int
) -> None:
    pre = pre_activations(seed, rows, latents, kind)
    threshold = {"one": torch.tensor([0.5]), "own": torch.rand(latents), "negative": torch.full((latents,), -0.5)}[
        floors
    ]
    found = compiled_selection.above(pre, threshold, rectify, room)
    expected = without_zeros(JumpReLU(threshold, rectify).dense(pre))
    assert sorted_entries(SparseActivations(*found), latents) == sorted_entries(expected, latents)


@pytest.mark.parametrize("activation", [TopK(7), TopK(7, rectify=False), ReLU(), JumpReLU(torch.full((300,), 0.7))])
def test_tiles_of_an_encoder_are_one(activation: Activation, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(300, 16, generator=generator), torch.randn(500, 16, generator=generator)
    for bias in (None, torch.randn(300, generator=generator)):
        encoder = AffineEncoder(weight, bias, activation)
        expected = sorted_entries(without_zeros(encoder.dense(x)), 300)
        for rows in (64, 100, 1000):
            monkeypatch.setattr("sae_core.parts.encoder._TILE_BYTES", rows * 4 * 300)
            places, values = sorted_entries(encoder.sparse(x), 300)
            assert places == expected[0]
            np.testing.assert_allclose(values, expected[1], rtol=1e-4, atol=1e-5)
        # the room that is used again must not be what was given out
        first = encoder.sparse(x)
        before = first.value.clone()
        encoder.sparse(torch.zeros_like(x))
        assert first.value.equal(before)


def test_memory_that_is_used_again_belongs_to_no_mode() -> None:
    x, weight = torch.randn(500, 16), torch.randn(5000, 16)
    encoder = AffineEncoder(weight, None, TopK(3))
    with torch.inference_mode():
        inside = encoder.sparse(x)
    with torch.no_grad():
        outside = encoder.sparse(x)
    assert inside.value.equal(outside.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("activation", [TopK(3), ReLU(), JumpReLU(torch.tensor([0.7]))])
def test_a_row_that_is_not_finite_gives_nan(activation: Activation, bad: float) -> None:
    pre = pre_activations(0, 5, 40, "normal")
    pre[2, 17] = bad
    found = activation.sparse(pre)
    assert found.value[found.token == 2].isnan().tolist() == [True]
    assert found.value[found.token != 2].isfinite().all()


@pytest.mark.parametrize("activation", [TopK(3), ReLU(), JumpReLU(torch.tensor([0.7], dtype=torch.bfloat16))])
def test_other_dtypes_take_the_torch_twin(activation: Activation) -> None:
    pre = pre_activations(0, 5, 40, "normal").bfloat16()
    assert not compiled_selection.applies_to(pre)
    assert sorted_entries(activation.sparse(pre), 40) == sorted_entries(without_zeros(activation.dense(pre)), 40)
    pre[2, 17] = float("nan")
    found = activation.sparse(pre)
    assert found.value[found.token == 2].isnan().any()
