"""Logit lens and neighbours against float64 brute force and the planted world."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_core.attachment import AttachedCoder, attach
from sae_core.coder import SparseCoder
from sae_core.errors import NonFiniteError
from sae_core.lens import lens
from sae_core.lens_evidence import LensEvidence
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder
from sae_core.subject import SubjectModel
from tests.planted_world import BOS, NUM_LATENTS, VOCABULARY, token_id
from tests.sae_core.test_extraction import attached, subject, world  # noqa: F401
from tests.sae_core.tiny_families import HIDDEN, VOCAB, WIDTH, tiny_family

LATENTS = 50


def coder_on(places: tuple[str, ...], width: int = WIDTH, latents: int = LATENTS) -> SparseCoder:
    generator = torch.Generator().manual_seed(11)
    decoder = torch.randn(latents, width * len(places), generator=generator)
    return SparseCoder(
        encoder=AffineEncoder(
            torch.randn(latents, width * len(places), generator=generator),
            torch.zeros(latents),
            JumpReLU(torch.ones(latents)),
        ),
        decoder_weight=decoder * torch.rand(latents, 1, generator=generator) * 5,
        decoder_bias=torch.zeros(width * len(places)),
        hookpoints_in=places,
        hookpoints_out=places,
        num_hooks_in=len(places),
        num_hooks_out=len(places),
        format="test",
        architecture="test",
        fingerprint="test",
    )


def with_decoder(attached: AttachedCoder, weight: torch.Tensor) -> AttachedCoder:  # noqa: F811
    return replace(attached, coder=replace(attached.coder, decoder_weight=weight))


def neighbours_by_hand(weight: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    weight = weight.astype(np.float64)
    unit = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1)[:, :count]
    return order, np.take_along_axis(cosines, order, axis=1)


def lens_by_hand(subject: SubjectModel, family: str, rows: np.ndarray) -> np.ndarray:  # noqa: F811
    """[L, V] by the formulas of RMSNorm and LayerNorm, without the LayerNorm's bias, in float64."""
    unit = rows.astype(np.float64)
    gain = subject.final_norm.weight.double().numpy()
    if "gemma" in family:
        gain = gain + 1
    if family in ("gpt2", "neox_parallel", "neox_sequential"):
        unit = unit - unit.mean(axis=1, keepdims=True)
    unit = unit / np.sqrt((unit**2).mean(axis=1, keepdims=True))
    return (unit * gain) @ subject.model.get_output_embeddings().weight.double().numpy().T


def check_tokens(found: LensEvidence, logits: np.ndarray, count: int) -> None:
    order = np.argsort(-logits, axis=1)
    np.testing.assert_array_equal(found.promoted, order[:, :count])
    np.testing.assert_array_equal(found.suppressed, order[:, ::-1][:, :count])
    np.testing.assert_allclose(
        found.promoted_logits, np.take_along_axis(logits, found.promoted, 1), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        found.suppressed_logits, np.take_along_axis(logits, found.suppressed, 1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox_parallel", "gemma2", "qwen3"])
@pytest.mark.parametrize("block", [4096, 7])
def test_against_brute_force(family: str, block: int) -> None:
    tiny = tiny_family(family)
    place = {"gpt2": "h.1"}.get(family, "layers.1")
    on_tiny = attach(tiny, coder_on((place,)))
    told: list[int] = []
    found = lens(tiny, on_tiny, neighbours=6, tokens=5, block=block, progress=told.append)
    order, cosines = neighbours_by_hand(on_tiny.coder.decoder_weight.numpy(), 6)
    np.testing.assert_array_equal(found.neighbours, order)
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-5)
    check_tokens(found, lens_by_hand(tiny, family, on_tiny.coder.decoder_weight.numpy()), 5)
    assert told[-1] == LATENTS
    assert found.neighbours.dtype == np.int32
    assert found.promoted.dtype == np.int32


@pytest.mark.parametrize(
    "places", [("layers.2", "layers.0"), ("layers.0", "layers.2"), ("embed_tokens", "layers.2.mlp")]
)
def test_of_several_places_the_one_nearest_the_unembedding_is_read(places: tuple[str, str]) -> None:
    tiny = tiny_family("llama")
    on_tiny = attach(tiny, coder_on(places))
    found = lens(tiny, on_tiny, neighbours=4, tokens=5)
    weight = on_tiny.coder.decoder_weight.numpy()
    part = weight[:, :WIDTH] if places[0] == "layers.2" else weight[:, WIDTH:]
    check_tokens(found, lens_by_hand(tiny, "llama", part), 5)
    np.testing.assert_array_equal(found.neighbours, neighbours_by_hand(weight, 4)[0])


def test_behind_the_final_norm_nothing_is_normalised_again() -> None:
    tiny = tiny_family("llama")
    on_tiny = attach(tiny, coder_on(("norm",)))
    weight = on_tiny.coder.decoder_weight.double().numpy()
    scaled = weight / np.sqrt((weight**2).mean(axis=1, keepdims=True))
    check_tokens(lens(tiny, on_tiny, tokens=5), scaled @ tiny.model.lm_head.weight.double().numpy().T, 5)


def test_a_place_that_is_not_of_the_residual_stream_has_neighbours_and_no_tokens() -> None:
    tiny = tiny_family("llama")
    on_tiny = attach(tiny, coder_on(("layers.1.mlp.down_proj:input",), width=HIDDEN))
    found = lens(tiny, on_tiny, neighbours=3, tokens=4)
    assert (found.promoted == -1).all()
    assert (found.suppressed == -1).all()
    assert (found.promoted_logits == 0).all()
    np.testing.assert_array_equal(found.neighbours, neighbours_by_hand(on_tiny.coder.decoder_weight.numpy(), 3)[0])


def test_rows_of_zeros_and_too_few_latents_or_tokens() -> None:
    tiny = tiny_family("llama")
    on_tiny = attach(tiny, coder_on(("layers.1",), latents=4))
    weight = on_tiny.coder.decoder_weight.clone()
    weight[2] = 0
    weight[3] = -weight[0] * 2
    found = lens(tiny, with_decoder(on_tiny, weight), neighbours=5, tokens=VOCAB + 3)
    assert found.neighbours[2].tolist() == [-1] * 5
    assert (found.promoted[2] == -1).all()
    assert set(found.neighbours[0].tolist()) == {1, 3, -1}  # a cosine of -1 is a neighbour, zeros are none
    assert found.neighbours[0].tolist()[2:] == [-1, -1, -1]
    assert found.cosines[0, list(found.neighbours[0]).index(3)] == pytest.approx(-1)
    assert (found.promoted[0, :VOCAB] >= 0).all()
    assert (found.promoted[0, VOCAB:] == -1).all()


def test_tokens_that_no_text_holds_are_left_out() -> None:
    tiny = tiny_family("llama")
    on_tiny = attach(tiny, coder_on(("layers.1",)))
    special = tiny.special_ids
    tiny.special_ids = frozenset({3, 5})
    try:
        found = lens(tiny, on_tiny, tokens=VOCAB)
    finally:
        tiny.special_ids = special
    assert not np.isin([3, 5], found.promoted).any()
    assert ((found.promoted >= 0).sum(axis=1) == VOCAB - 2).all()


def test_weights_that_are_not_finite_are_an_error() -> None:
    tiny = tiny_family("llama")
    on_tiny = attach(tiny, coder_on(("layers.1",)))
    weight = on_tiny.coder.decoder_weight.clone()
    weight[7, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="latent 7"):
        lens(tiny, with_decoder(on_tiny, weight))


def test_the_planted_latents_promote_what_they_write(
    subject: SubjectModel,  # noqa: F811
    attached: AttachedCoder,  # noqa: F811
    tmp_path: Path,
) -> None:
    found = lens(subject, attached, neighbours=3, tokens=3)
    slots = {0: 17, 1: 3, 2: 2, 4: 7, 8: 5, 5: token_id("return"), **{i: 20 + i for i in range(9, NUM_LATENTS)}}
    for latent, token in slots.items():
        assert found.promoted[latent, 0] == token, VOCABULARY[token]
    # latent 3 writes the slot of the BOS, which no text holds; 6 and 7 write what the head does not read
    assert token_id(BOS) not in found.promoted
    for latent in (6, 7):
        assert np.abs(found.promoted_logits[latent]).max() < 0.2 * found.promoted_logits[0, 0]
    found.save(tmp_path / "lens.safetensors")
    back = LensEvidence.load(tmp_path / "lens.safetensors")
    np.testing.assert_array_equal(back.promoted, found.promoted)
    np.testing.assert_array_equal(back.cosines, found.cosines)
