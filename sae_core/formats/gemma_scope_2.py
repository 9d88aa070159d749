"""Gemma Scope's second release: ``params.safetensors`` with lower-case names and a ``config.json`` that may be missing.

JumpReLU, nothing subtracted from the input. A cross-layer transcoder is one file a layer, ``params_layer_N.safetensors``.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sae_core.coder import Fact, SparseCoder, fingerprint
from sae_core.errors import CoderError
from sae_core.formats.gemma_scope import ALIKE
from sae_core.formats.reading import Architecture, Options, file_in, flag, layer_of, one_of, read_config, text
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder
from sae_core.weights.stored import StoredFile

NAME = "gemma_scope_2"
TITLE = "Gemma Scope 2"
REFERENCE = "sae-lens' converter"
FILES = "params.safetensors (+ config.json), or params_layer_N.safetensors"
CONFIG, WEIGHTS = "config.json", "params.safetensors"
ARCHITECTURES = (
    Architecture("sae on resid_post", "gemma_scope_2/resid_post"),
    Architecture("sae on mlp_out", "gemma_scope_2/mlp_out"),
    Architecture("sae on attn_out", "gemma_scope_2/attn_out"),
    Architecture("sae, without config.json", "gemma_scope_2/no_config"),
    Architecture("transcoder", "gemma_scope_2/transcoder"),
    Architecture("transcoder, affine skip connection", "gemma_scope_2/transcoder_affine"),
    Architecture("clt", "gemma_scope_2_clt/layers", reference="numpy encode"),
    Architecture("clt, sae-lens' view of one layer", "gemma_scope_2/clt"),
    Architecture("clt, affine skip connection", "gemma_scope_2_clt/layers_affine", reference="numpy encode"),
    Architecture("crosscoder", "", refused="its layout is not described where we could read it"),
)
_MLP = ("model.layers.{}.pre_feedforward_layernorm.output", "model.layers.{}.post_feedforward_layernorm.output")
_HOOKS = {
    "resid_post": ("model.layers.{}.output",) * 2,
    "attn_out": ("model.layers.{}.self_attn.o_proj.input",) * 2,
    "mlp_out": ("model.layers.{}.post_feedforward_layernorm.output",) * 2,
    "transcoder": _MLP,
    "clt": _MLP,
}
_OF_LAYER = re.compile(r"params_layer_(\d+)\.safetensors")


def matches(path: Path) -> bool:
    """Whether ``path`` holds this format."""
    if file_in(path, WEIGHTS).is_file() or _OF_LAYER.fullmatch(path.name):
        return True
    return path.is_dir() and any(_OF_LAYER.fullmatch(p.name) for p in path.iterdir())


def read(path: Path, options: Options) -> SparseCoder:
    """An SAE, a transcoder, or the latents of one layer of a cross-layer transcoder."""
    folder = path if path.is_dir() else path.parent
    where = folder / CONFIG
    config = read_config(where) if where.is_file() else {}
    one_of(where, "architecture", config.get("architecture", "jump_relu"), ("jump_relu",))
    named = folder.resolve().as_posix()
    sites = (part.removesuffix("_all") for part in reversed(named.split("/")))
    site = next((part for part in sites if part in (*_HOOKS, "crosscoder")), None)
    kind = one_of(
        where,
        "type",
        config["type"] if config.get("type") is not None else _kind(site),
        ("sae", "transcoder", "clt", "crosscoder"),
    )
    if kind == "crosscoder":
        raise CoderError(f"{folder}: Gemma Scope 2's crosscoders are refused: {ARCHITECTURES[-1].refused}.")
    if kind == "clt" or not file_in(path, WEIGHTS).is_file():
        return _cross_layer(path, folder, config, options)
    stored = options.open(file_in(path, WEIGHTS))
    layers = re.findall(r"/layer_(\d+)_", named + "_")
    inferred = _HOOKS.get(site or "")
    into, out = (
        text(where, key, config.get(key)) or (inferred[i].format(layers[-1]) if inferred and layers else "")
        for i, key in enumerate(("hf_hook_point_in", "hf_hook_point_out"))
    )
    affine = _is_affine(where, config, stored)
    unsaid = site is None and not config.get("type")
    if unsaid and (affine or any(not ALIKE.search(name) for name in options.hookpoints)):
        raise CoderError(
            f"{stored.path} {'has affine_skip_connection, as transcoders have' if affine else 'may be a transcoder'}, and neither "
            "config.json nor the folder's name says what it is: keep the names of the repository's folders in the path."
        )
    d_in, num = stored.shape("w_enc", 2)
    d_out = stored.shape("w_dec", 2)[1]
    weights = stored.read(
        {"w_enc": (d_in, num), "w_dec": (num, d_out), "b_enc": (num,), "b_dec": (d_out,), "threshold": (num,)},
        {"affine_skip_connection": (d_in, d_out)},
        dtype=options.dtype,
        device=options.device,
    )
    skip = weights.get("affine_skip_connection")
    origin = f"{CONFIG}: hf_hook_point_in" if config.get("hf_hook_point_in") else "the folder's name"
    coder = SparseCoder(
        encoder=AffineEncoder(weights["w_enc"].T, weights["b_enc"], JumpReLU(weights["threshold"])),
        decoder_weight=weights["w_dec"],
        decoder_bias=weights["b_dec"],
        skip=None if skip is None else skip.T,
        hookpoints_in=(into,) if into else (),
        hookpoints_out=(out,) if out else (),
        format=NAME,
        architecture=kind + (", affine skip connection" if affine else ""),
        fingerprint="",
        facts=(Fact("hookpoint", into or "not said", origin), *_facts(config)),
    )
    return replace(coder, fingerprint=fingerprint(weights.digest, coder))


def _kind(site: str | None) -> str:
    return site if site in ("transcoder", "clt", "crosscoder") else "sae"


def _facts(config: dict[str, Any]) -> tuple[Fact, ...]:
    said = tuple(
        Fact(key, str(config[key]), f"{CONFIG}: {key}") for key in ("model_name", "l0", "width") if key in config
    )
    return (*said, Fact("normalisation", "none", "the format has none"))


def _is_affine(where: Path, config: dict[str, Any], stored: StoredFile) -> bool:
    """Whether there is an affine skip connection, on which config and weights must agree."""
    affine = "affine_skip_connection" in stored.tensors
    if flag(where, "affine_connection", config.get("affine_connection"), affine) != affine:
        raise CoderError(
            f"{where}: affine_connection is {config['affine_connection']!r}, and {stored.path.name} "
            f"{'has' if affine else 'has no'} affine_skip_connection: one of the two files is another coder's."
        )
    return affine


def _cross_layer(path: Path, folder: Path, config: dict[str, Any], options: Options) -> SparseCoder:
    """The latents that read one layer and write to it and to every later one."""
    files = {int(m[1]): p for p in sorted(folder.iterdir()) if (m := _OF_LAYER.fullmatch(p.name))}
    chosen = _OF_LAYER.fullmatch(path.name)
    layer = int(chosen[1]) if chosen else layer_of(folder, options, files)
    stored: StoredFile = options.open(path if chosen else files[layer])
    d_in, num = stored.shape("w_enc", 2)
    affine = _is_affine(folder / CONFIG, config, stored)
    num_layers, d_out = stored.shape("w_dec", 3)[1:]
    if layer >= num_layers:
        raise CoderError(f"{stored.path}: w_dec has {num_layers} layers, and layer {layer} is none of them.")
    weights = stored.read(
        {
            "w_enc": (d_in, num),
            "w_dec": (num, num_layers, d_out),
            "b_enc": (num,),
            "b_dec": (d_out,),
            "threshold": (num,),
        },
        {"affine_skip_connection": (d_in, d_out)},
        dtype=options.dtype,
        device=options.device,
    )
    decoder = weights["w_dec"]
    if layer and bool((decoder[:, :layer] != 0).any()):
        raise CoderError(
            f"{stored.path}: w_dec is not zero for layers below {layer}, to which its latents cannot write."
        )
    coder = SparseCoder(
        encoder=AffineEncoder(weights["w_enc"].T, weights["b_enc"], JumpReLU(weights["threshold"])),
        decoder_weight=decoder.view(num, num_layers * d_out)[:, layer * d_out :],
        # b_dec and the skip connection belong to the sum over the latents of all layers below, not to one layer's
        decodes_partly=True,
        decoder_bias=torch.zeros((num_layers - layer) * d_out, dtype=decoder.dtype, device=decoder.device),
        hookpoints_in=(_MLP[0].format(layer),),
        hookpoints_out=tuple(_MLP[1].format(i) for i in range(layer, num_layers)),
        num_hooks_out=num_layers - layer,
        format=NAME,
        architecture="clt" + (", affine skip connection" if affine else ""),
        fingerprint="",
        facts=(
            Fact("hookpoint", _MLP[0].format(layer), f"the file's name, {stored.path.name}"),
            Fact(
                "decode",
                f"what layer {layer} writes, without biases and skip connections",
                "cross-layer transcoders share them",
            ),
            Fact("normalisation", "none", "the format has none"),
        ),
    )
    return replace(coder, fingerprint=fingerprint(weights.digest, coder, (f"layer {layer}",)))
