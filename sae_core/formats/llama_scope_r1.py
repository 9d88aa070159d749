"""Llama Scope R1: ``config.json`` + ``sae_weights.safetensors`` with a log threshold and the norm of its inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sae_core.coder import Fact, SparseCoder, fingerprint
from sae_core.errors import CoderError
from sae_core.formats.llama_scope import checked_hook
from sae_core.formats.reading import (
    Architecture,
    Options,
    check_finite,
    flag,
    positive_int,
    positive_number,
    read_config,
    threshold_beside_norms,
)
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder

NAME = "llama_scope_r1"
TITLE = "Llama Scope R1"
REFERENCE = "sae-lens' converter"
FILES = "config.json + sae_weights.safetensors"
CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
ARCHITECTURES = (Architecture("residual stream", "llama_scope_r1/res"),)
_NORM = "dataset_average_activation_norm."


def matches(path: Path) -> bool:
    """Whether ``path`` holds this format."""
    # SAELens names its weights alike, beside a cfg.json
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file() and not (path / "cfg.json").exists()


def read(path: Path, options: Options) -> SparseCoder:
    """An SAE, its normalisation folded; the threshold is on the scale of the pre-activations already."""
    where = path / CONFIG
    config = read_config(where)
    hook = checked_hook(where, config)
    d = positive_int(where, "d_model", config.get("d_model"))
    num = config.get("d_sae") or d * positive_int(where, "expansion_factor", config.get("expansion_factor"))
    positive_int(where, "d_sae", num)
    stored = options.open(path / WEIGHTS)
    norm = next((name for name in stored.tensors if name.startswith(_NORM)), None)
    given = options.take_input_scale() if norm is None else None
    if norm is not None:
        scale, origin = d**0.5 / positive_number(stored.path, norm, stored.number(norm)), f"{WEIGHTS}: {norm}"
    elif given is not None:
        scale, origin = given[0], "given"
    else:
        raise CoderError(
            f"{stored.path} does not hold {_NORM}<hook>: set input_scale to sqrt(d_model) / average norm of the inputs."
        )
    weights = stored.read(
        {
            "encoder.weight": (num, d),
            "encoder.bias": (num,),
            "decoder.weight": (d, num),
            "decoder.bias": (d,),
            "log_jumprelu_threshold": (num,),
        },
        ignored=[norm] if norm else (),
        dtype=options.dtype,
        device=options.device,
    )
    thresholds = weights["log_jumprelu_threshold"].exp_()
    if flag(where, "sparsity_include_decoder_norm", config.get("sparsity_include_decoder_norm")):
        thresholds = threshold_beside_norms(thresholds, weights["decoder.weight"].T)
    weights["encoder.weight"].mul_(scale)
    weights["decoder.weight"].div_(scale)
    weights["decoder.bias"].div_(scale)
    check_finite(stored.path, "a weight times the input scale, or a threshold,", *weights.tensors.values())
    coder = SparseCoder(
        encoder=AffineEncoder(weights["encoder.weight"], weights["encoder.bias"], JumpReLU(thresholds)),
        decoder_weight=weights["decoder.weight"].T,
        decoder_bias=weights["decoder.bias"],
        hookpoints_in=(hook,) if hook else (),
        hookpoints_out=(hook,) if hook else (),
        format=NAME,
        architecture="residual stream",
        fingerprint="",
        facts=(
            Fact("hookpoint", hook or "not said", f"{CONFIG}: hook_point_in"),
            Fact("normalisation", f"inputs times {scale:.6g}, folded", origin),
        ),
    )
    return replace(coder, fingerprint=fingerprint(weights.digest, coder, (f"scale {scale!r}",)))
