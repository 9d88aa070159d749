"""dictionary_learning's coders: ``config.json`` + ``ae.pt``, all seven classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sae_core.coder import Fact, SparseCoder, fingerprint
from sae_core.errors import CoderError
from sae_core.formats.reading import (
    Architecture,
    Options,
    active_latents,
    as_threshold,
    check_finite,
    one_of,
    positive_int,
    read_config,
    shown,
    text,
)
from sae_core.parts.activation import Activation, Gated, JumpReLU, ReLU, TopK
from sae_core.parts.encoder import AffineEncoder
from sae_core.weights.stored import StoredFile

NAME = "dictionary_learning"
TITLE = "dictionary_learning"
REFERENCE = "dictionary_learning, which wrote the files"
FILES = "config.json + ae.pt"
CONFIG, WEIGHTS = "config.json", "ae.pt"
ARCHITECTURES = tuple(
    Architecture(name, f"dictionary_learning/{name}")
    for name in (
        "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
        "JumpReluAutoEncoder",
    )
)  # fmt: skip
_STORED_BY_COLUMNS = ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder")
"""Classes with W_enc [d, m] and W_dec [m, d] instead of two nn.Linear."""
_DECODER_BIAS = {
    "AutoEncoder": "bias",
    "AutoEncoderNew": "decoder.bias",
    "GatedAutoEncoder": "decoder_bias",
}
_SUBTRACTED = ("AutoEncoder", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")


def matches(path: Path) -> bool:
    """Whether ``path`` holds this format."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path, options: Options) -> SparseCoder:
    """A trained dictionary as the library's ``load_dictionary`` gives it, with the threshold of inference."""
    where = path / CONFIG
    trainer = read_config(where).get("trainer")
    if not isinstance(trainer, dict):
        raise CoderError(f"{where} has no table 'trainer': it is not a config of dictionary_learning.")
    kind = one_of(where, "trainer.dict_class", trainer.get("dict_class"), [a.name for a in ARCHITECTURES])
    d = positive_int(where, "trainer.activation_dim", trainer.get("activation_dim"))
    num = positive_int(where, "trainer.dict_size", trainer.get("dict_size"))
    stored = options.open(path / WEIGHTS)
    if "ae" in stored.values:
        raise CoderError(
            f"{stored.path} is a backup from the middle of training; give the ae.pt that training ended with."
        )
    linear = kind not in _STORED_BY_COLUMNS
    bias = _DECODER_BIAS.get(kind, "b_dec")
    encoder_weight, decoder_weight = ("encoder.weight", "decoder.weight") if linear else ("W_enc", "W_dec")
    shapes: dict[str, tuple[int, ...]] = {
        encoder_weight: (num, d) if linear else (d, num),
        decoder_weight: (d, num) if linear else (num, d),
        bias: (d,),
    }
    if kind == "GatedAutoEncoder":
        shapes |= {"r_mag": (num,), "gate_bias": (num,), "mag_bias": (num,)}
    else:
        shapes["encoder.bias" if linear else "b_enc"] = (num,)
    if kind == "JumpReluAutoEncoder":
        shapes["threshold"] = (num,)
    # scalars, and what only training needs; what they say is read by name below
    scalars = frozenset({"k", "threshold", "group_sizes"}) - set(shapes)
    weights = stored.read(shapes, ignored=scalars, dtype=options.dtype, device=options.device)
    folded: tuple[str, ...] = ()
    decoder = weights[decoder_weight].T if linear else weights[decoder_weight]
    if kind == "AutoEncoder":
        # the library's loader makes decoder rows unit length, so that its activations carry the norm
        norms = decoder.norm(dim=1)
        weights["encoder.weight"].mul_(norms.unsqueeze(1))
        weights["encoder.bias"].mul_(norms)
        decoder.div_(norms.clamp_min(torch.finfo(norms.dtype).tiny).unsqueeze(1))
        check_finite(stored.path, "a weight times its decoder norm", *weights.tensors.values())
        folded = ("decoder norms",)
    activation, facts = _activation(kind, stored, trainer, num, weights.tensors)
    layer = trainer.get("layer")
    if layer is not None and (not isinstance(layer, int) or layer < 0):
        raise CoderError(f"{where}: trainer.layer is {shown(layer)}; it must be the number of a layer.")
    hookpoint = text(where, "trainer.submodule_name", trainer.get("submodule_name"))
    hookpoint = hookpoint or (f"resid_post_layer_{layer}" if layer is not None else "")
    coder = SparseCoder(
        encoder=AffineEncoder(
            weights[encoder_weight] if linear else weights[encoder_weight].T,
            weights.get("encoder.bias" if linear else "b_enc"),
            activation,
        ),
        decoder_weight=decoder,
        decoder_bias=weights[bias],
        shift=weights[bias] if kind in _SUBTRACTED else None,
        hookpoints_in=(hookpoint,) if hookpoint else (),
        hookpoints_out=(hookpoint,) if hookpoint else (),
        format=NAME,
        architecture=kind,
        fingerprint="",
        facts=(
            Fact("hookpoint", hookpoint or "not said", f"{CONFIG}: trainer.submodule_name"),
            Fact(
                "model_name",
                text(where, "trainer.lm_name", trainer.get("lm_name")) or "not said",
                f"{CONFIG}: trainer.lm_name",
            ),
            Fact("normalisation", "folded into the weights when training ended", "the library's final save"),
            *facts,
        ),
    )
    known = tuple(f"{fact.name} {fact.value}" for fact in facts)
    return replace(coder, fingerprint=fingerprint(weights.digest, coder, folded + known))


def _activation(
    kind: str, stored: StoredFile, trainer: dict[str, Any], num: int, tensors: dict[str, torch.Tensor]
) -> tuple[Activation, tuple[Fact, ...]]:
    if kind == "GatedAutoEncoder":
        return Gated(tensors["gate_bias"], tensors["r_mag"], tensors["mag_bias"]), ()
    if kind == "JumpReluAutoEncoder":
        return JumpReLU(tensors["threshold"]), ()
    if kind == "AutoEncoderTopK":
        k = active_latents(stored.path, stored.integer("k"), num)
        return TopK(k), (Fact("k", str(k), f"{WEIGHTS}: k"),)
    if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        threshold = stored.number("threshold")
        if not threshold >= 0:
            raise CoderError(
                f"{stored.path}: threshold is {threshold:g}, which means that training never set it; without it which latents "
                "fire depends on the batch: give a coder whose training ended."
            )
        like = next(iter(tensors.values()))
        return JumpReLU(as_threshold(stored.path, threshold, like.dtype, like.device)), (
            Fact("threshold", f"{threshold!r}", f"{WEIGHTS}: threshold"),
        )
    return ReLU(), ()
