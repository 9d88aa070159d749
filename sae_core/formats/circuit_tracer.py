"""circuit-tracer's transcoder sets: ``config.yaml`` (model_kind transcoder_set) + one ``layer_N.safetensors`` a layer."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from sae_core.coder import Fact, SparseCoder, fingerprint
from sae_core.errors import CoderError
from sae_core.formats.reading import (
    Architecture,
    Options,
    active_latents,
    is_yaml_of_kind,
    layer_of,
    one_of,
    read_yaml,
    text,
)
from sae_core.parts.activation import Activation, JumpReLU, ReLU, TopK
from sae_core.parts.encoder import AffineEncoder

NAME = "circuit_tracer"
TITLE = "circuit-tracer transcoder set"
REFERENCE = "numpy encode"
FILES = "config.yaml (model_kind: transcoder_set) + layer_N.safetensors"
CONFIG = "config.yaml"
ARCHITECTURES = (
    Architecture("relu", "circuit_tracer/relu"),
    Architecture("jumprelu", "circuit_tracer/jumprelu"),
    Architecture("topk", "circuit_tracer/topk"),
    Architecture("relu, skip connection", "circuit_tracer/skip"),
    Architecture("relu, one layer's file given", "circuit_tracer/mwhanna", reference="sae-lens' converter"),
)
_OF_LAYER = re.compile(r"layer_(\d+)\.safetensors")
_THRESHOLD = "activation_function.threshold"


def matches(path: Path) -> bool:
    """Whether ``path`` is a set, or the file of one layer of a set."""
    folder = path.parent if _OF_LAYER.fullmatch(path.name) else path
    return is_yaml_of_kind(folder / CONFIG, "transcoder_set")


def read(path: Path, options: Options) -> SparseCoder:
    """The transcoder of one layer, chosen by the file or by the hookpoint's layer."""
    folder = path.parent if _OF_LAYER.fullmatch(path.name) else path
    where = folder / CONFIG
    config = read_yaml(where, "transcoder_set")
    files = {int(m[1]): p for p in folder.iterdir() if (m := _OF_LAYER.fullmatch(p.name))}
    listed = config.get("transcoders")
    if listed and not _OF_LAYER.fullmatch(path.name):
        names = (
            [str(place).replace("\\", "/").rsplit("/", 1)[-1] for place in listed] if isinstance(listed, list) else []
        )
        if len(set(names)) < len(names):
            raise CoderError(
                f"{where}: transcoders lists two files of one name, which cannot lie beside it: give one layer_N.safetensors."
            )
        if not names or not all((folder / name).is_file() for name in names):
            raise CoderError(
                f"{where}: transcoders lists files that are not beside it: fetch them into {folder}, or give one layer_N.safetensors."
            )
        files = {layer: folder / name for layer, name in enumerate(names)}
    chosen = _OF_LAYER.fullmatch(path.name)
    layer = int(chosen[1]) if chosen else layer_of(folder, options, files)
    stored = options.open(path if chosen else files[layer])
    num, d_in = stored.shape("W_enc", 2)
    d_out = stored.shape("W_dec", 2)[1]
    weights = stored.read(
        {"W_enc": (num, d_in), "W_dec": (num, d_out), "b_enc": (num,), "b_dec": (d_out,)},
        {_THRESHOLD: (num,), "W_skip": (d_out, d_in)},
        ignored=["k"],
        dtype=options.dtype,
        device=options.device,
    )
    function = one_of(
        where, "activation", config.get("activation") or "relu", ("relu", "topk", "jumprelu", "jump_relu")
    )
    saved_k = stored.integer("k") if "k" in stored.tensors or "k" in stored.values else None
    threshold = weights.get(_THRESHOLD)
    if function.startswith("jump") and threshold is None:
        raise CoderError(f"{stored.path}: config.yaml says {function}, and the file has no {_THRESHOLD}.")
    if threshold is not None and function == "topk":
        raise CoderError(f"{stored.path}: config.yaml says topk, and the file has {_THRESHOLD}: one of them is wrong.")
    if saved_k is not None and config.get("k") not in (None, saved_k):
        raise CoderError(f"{stored.path}: the file says k = {saved_k}, and config.yaml another: one of them is wrong.")
    if saved_k is not None and function != "topk":
        raise CoderError(f"{stored.path}: the file says k = {saved_k}, and config.yaml does not say activation: topk.")
    activation: Activation = ReLU() if threshold is None else JumpReLU(threshold, rectify=False)
    if function == "topk":
        k = active_latents(where, saved_k if saved_k is not None else config.get("k"), num)
        activation = TopK(k, rectify=False)
    skip = weights.get("W_skip")
    kind = "topk" if function == "topk" else "relu" if threshold is None else "jumprelu"
    into, out = (text(where, key, config.get(key)) for key in ("feature_input_hook", "feature_output_hook"))
    coder = SparseCoder(
        encoder=AffineEncoder(weights["W_enc"], weights["b_enc"], activation),
        decoder_weight=weights["W_dec"],
        decoder_bias=weights["b_dec"],
        skip=skip,
        hookpoints_in=(f"blocks.{layer}.{into}",) if into else (),
        hookpoints_out=(f"blocks.{layer}.{out}",) if out else (),
        format=NAME,
        architecture=kind + (", skip connection" if skip is not None else ""),
        fingerprint="",
        facts=(
            Fact("hookpoint", f"blocks.{layer}.{into}", f"{CONFIG}: feature_input_hook, and the file's name"),
            Fact(
                "model_name", text(where, "model_name", config.get("model_name")) or "not said", f"{CONFIG}: model_name"
            ),
            Fact("normalisation", "none", "the format has none"),
        ),
    )
    return replace(coder, fingerprint=fingerprint(weights.digest, coder))
