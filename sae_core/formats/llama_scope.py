"""Llama Scope: ``hyperparams.json`` + ``checkpoints/final.safetensors`` (He et al. 2024).

Inputs are scaled by ``sqrt(d) / average norm``, which is folded into the weights; the one threshold is scaled with them,
as the publishers' own conversion does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_core.coder import Fact, SparseCoder, fingerprint
from sae_core.errors import CoderError
from sae_core.formats.reading import (
    Architecture,
    Options,
    as_threshold,
    check_finite,
    flag,
    one_of,
    positive_int,
    positive_number,
    read_config,
    shown,
    text,
    threshold_beside_norms,
)
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder

NAME = "llama_scope"
TITLE = "Llama Scope"
REFERENCE = "sae-lens' converter"
FILES = "hyperparams.json + checkpoints/final.safetensors"
CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
ARCHITECTURES = (
    Architecture("residual stream", "llama_scope/res"),
    Architecture("MLP output", "llama_scope/mlp"),
    Architecture(
        "transcoder", "", refused="its threshold seems to be in units of the output, and no reference says so"
    ),
)


def matches(path: Path) -> bool:
    """Whether ``path`` holds this format."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def checked_hook(where: Path, config: Mapping[str, Any]) -> str:
    """The hookpoint of a config of the library behind Llama Scope and Llama Scope R1.

    Raises CoderError for settings that are not read.
    """
    one_of(where, "act_fn", str(config.get("act_fn", "jumprelu")).lower(), ("jumprelu",))
    # "inference" says that the norms are in the weights already
    one_of(where, "norm_activation", config.get("norm_activation", "dataset-wise"), ("dataset-wise",))
    hook = text(where, "hook_point_in", config.get("hook_point_in"))
    if config.get("hook_point_out") not in (None, hook):
        raise CoderError(
            f"{where}: the coder writes to {shown(config['hook_point_out'])}; such transcoders are refused: {ARCHITECTURES[-1].refused}."
        )
    for key in ("apply_decoder_bias_to_pre_encoder", "use_glu_encoder"):
        if config.get(key):
            raise CoderError(f"{where}: {key} is set; coders with it are not read.")
    return hook


def read(path: Path, options: Options) -> SparseCoder:
    """An SAE, its normalisation folded."""
    where = path / CONFIG
    config = read_config(where)
    hook = checked_hook(where, config)
    d, num = (positive_int(where, key, config.get(key)) for key in ("d_model", "d_sae"))
    norms = config.get("dataset_average_activation_norm")
    if not isinstance(norms, Mapping):
        raise CoderError(f"{where}: dataset_average_activation_norm is {shown(norms)}; it must say the norm 'in'.")
    scale = d**0.5 / positive_number(where, "dataset_average_activation_norm.in", norms.get("in"))
    threshold = positive_number(where, "jump_relu_threshold", config.get("jump_relu_threshold")) * scale
    weights = options.open(path / WEIGHTS).read(
        {"encoder.weight": (num, d), "encoder.bias": (num,), "decoder.weight": (d, num), "decoder.bias": (d,)},
        dtype=options.dtype,
        device=options.device,
    )
    thresholds = as_threshold(where, threshold, options.dtype, options.device)
    if flag(where, "sparsity_include_decoder_norm", config.get("sparsity_include_decoder_norm")):
        thresholds = threshold_beside_norms(thresholds, weights["decoder.weight"].T)
    weights["encoder.weight"].mul_(scale)
    weights["decoder.weight"].div_(scale)
    weights["decoder.bias"].div_(scale)
    check_finite(path / WEIGHTS, "a weight times the input scale", *weights.tensors.values())
    coder = SparseCoder(
        encoder=AffineEncoder(
            weights["encoder.weight"],
            weights["encoder.bias"],
            JumpReLU(thresholds),
        ),
        decoder_weight=weights["decoder.weight"].T,
        decoder_bias=weights["decoder.bias"],
        hookpoints_in=(hook,) if hook else (),
        hookpoints_out=(hook,) if hook else (),
        format=NAME,
        architecture="MLP output" if "mlp" in hook else "residual stream",
        fingerprint="",
        facts=(
            Fact("hookpoint", hook or "not said", f"{CONFIG}: hook_point_in"),
            Fact("normalisation", f"inputs times {scale:.6g}, folded", f"{CONFIG}: dataset_average_activation_norm.in"),
            Fact("threshold", f"{threshold:.6g}", f"{CONFIG}: jump_relu_threshold, times that factor"),
        ),
    )
    return replace(
        coder, fingerprint=fingerprint(weights.digest, coder, (f"scale {scale!r}", f"threshold {threshold!r}"))
    )
