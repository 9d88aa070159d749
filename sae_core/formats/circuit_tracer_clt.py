"""circuit-tracer's cross-layer transcoders: ``config.yaml`` + ``W_enc_N.safetensors`` and ``W_dec_N.safetensors`` a layer."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch

from sae_core.coder import Fact, SparseCoder, fingerprint
from sae_core.errors import CoderError
from sae_core.formats.reading import Architecture, Options, is_yaml_of_kind, layer_of, read_yaml, text
from sae_core.parts.activation import Activation, JumpReLU, ReLU
from sae_core.parts.encoder import AffineEncoder

NAME = "circuit_tracer_clt"
TITLE = "circuit-tracer cross-layer transcoder"
REFERENCE = "numpy encode"
FILES = "config.yaml (model_kind: cross_layer_transcoder) + W_enc_N.safetensors + W_dec_N.safetensors"
CONFIG = "config.yaml"
ARCHITECTURES = (
    Architecture("relu", "circuit_tracer_clt/relu"),
    Architecture("relu, sae-lens' view of one layer", "circuit_tracer_clt/mntss", reference="sae-lens' converter"),
    Architecture("jumprelu", "circuit_tracer_clt/jumprelu"),
)
_OF_LAYER = re.compile(r"W_enc_(\d+)\.safetensors")


def matches(path: Path) -> bool:
    """Whether ``path`` is such a transcoder, or the file of one of its layers."""
    folder = path.parent if _OF_LAYER.fullmatch(path.name) else path
    return is_yaml_of_kind(folder / CONFIG, "cross_layer_transcoder")


def read(path: Path, options: Options) -> SparseCoder:
    """The latents that read one layer and write to it and to every later one."""
    folder = path.parent if _OF_LAYER.fullmatch(path.name) else path
    where = folder / CONFIG
    config = read_yaml(where, "cross_layer_transcoder")
    files = {int(m[1]): p for p in folder.iterdir() if (m := _OF_LAYER.fullmatch(p.name))}
    chosen = _OF_LAYER.fullmatch(path.name)
    i = int(chosen[1]) if chosen else layer_of(folder, options, files)
    stored = options.open(path if chosen else files[i])
    num, d = stored.shape(f"W_enc_{i}", 2)
    decoders = folder / f"W_dec_{i}.safetensors"
    if not decoders.is_file():
        raise CoderError(f"{decoders} is missing: fetch it, or the latents of layer {i} have no directions.")
    stored_decoder = options.open(decoders)
    reach, d_out = stored_decoder.shape(f"W_dec_{i}", 3)[1:]
    encoder = stored.read(
        {f"W_enc_{i}": (num, d), f"b_enc_{i}": (num,)},
        {f"threshold_{i}": (num,), f"W_skip_{i}": (d, d_out), f"b_dec_{i}": (d_out,)},
        dtype=options.dtype,
        device=options.device,
    )
    decoder = stored_decoder.read({f"W_dec_{i}": (num, reach, d_out)}, dtype=options.dtype, device=options.device)
    threshold = encoder.get(f"threshold_{i}")
    activation: Activation = ReLU() if threshold is None else JumpReLU(threshold, rectify=False)
    into, out = (text(where, key, config.get(key)) for key in ("feature_input_hook", "feature_output_hook"))
    coder = SparseCoder(
        encoder=AffineEncoder(encoder[f"W_enc_{i}"], encoder[f"b_enc_{i}"], activation),
        decoder_weight=decoder[f"W_dec_{i}"].view(num, reach * d_out),
        # b_dec and a skip connection belong to the sum over the latents of all layers below, not to one layer's
        decodes_partly=True,
        decoder_bias=torch.zeros(reach * d_out, dtype=options.dtype, device=options.device),
        hookpoints_in=(f"blocks.{i}.{into}",) if into else (),
        hookpoints_out=tuple(f"blocks.{layer}.{out}" for layer in range(i, i + reach)) if out else (),
        num_hooks_out=reach,
        format=NAME,
        architecture="relu" if threshold is None else "jumprelu",
        fingerprint="",
        facts=(
            Fact("hookpoint", f"blocks.{i}.{into}", f"{CONFIG}: feature_input_hook, and the file's name"),
            Fact(
                "model_name", text(where, "model_name", config.get("model_name")) or "not said", f"{CONFIG}: model_name"
            ),
            Fact(
                "decode",
                f"what layer {i} writes, without biases and skip connections",
                "cross-layer transcoders share them",
            ),
            Fact("normalisation", "none", "the format has none"),
        ),
    )
    return replace(coder, fingerprint=fingerprint(encoder.digest + decoder.digest, coder))
