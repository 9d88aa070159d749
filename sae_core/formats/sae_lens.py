"""SAELens' coders: ``cfg.json`` + ``sae_weights.safetensors`` (FORMATS A.1), version 6 and older."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_core.coder import Activation, JumpReLU, ReLU, SparseCoder, TopK, fingerprint_tensors
from sae_core.errors import CoderError, did_you_mean
from sae_core.formats.reading import check_shape, config_int, read_config, read_tensors

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ARCHITECTURES = ("standard", "topk", "jumprelu")


def matches(folder: Path) -> bool:
    """Whether ``folder`` holds this format."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _hook_name(config: dict[str, Any]) -> str | None:
    metadata = config.get("metadata") or {}
    name = metadata.get("hook_name") or config.get("hook_name") or config.get("hook_point")
    return str(name) if name else None


def _is_legacy(config: dict[str, Any]) -> bool:
    """Whether a version before 6 wrote it: flat, without ``sae_lens_version``."""
    version = config.get("sae_lens_version") or (config.get("metadata") or {}).get("sae_lens_version")
    return version is None or int(str(version).split(".")[0]) < 6


def read(folder: Path) -> SparseCoder:
    """Architectures of :data:`ARCHITECTURES` without run-time normalisation; what is not understood is refused."""
    path = folder / CONFIG
    config = read_config(path)
    legacy = _is_legacy(config)
    architecture = config.get("architecture", "standard")
    k = config.get("k")
    function = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if legacy and function == "topk":
        architecture, k = "topk", (config.get("activation_fn_kwargs") or {}).get("k")
    elif legacy and function != "relu":
        raise CoderError(f"{path}: activation_fn is {function!r}; this version reads 'relu' and 'topk'.")
    model_settings = (config.get("metadata") or config).get("model_from_pretrained_kwargs") or {}
    if model_settings.get("center_writing_weights"):
        raise CoderError(
            f"{path}: the coder was trained on a subject with centred writing weights (center_writing_weights), whose "
            "activations differ from the Hugging Face model's; this version reads coders of uncentred subjects."
        )
    if architecture not in ARCHITECTURES:
        raise CoderError(
            f"{path}: architecture is {architecture!r}, which this version does not read; {did_you_mean(str(architecture), ARCHITECTURES)}"
        )
    normalise = config.get("normalize_activations", "none")
    if normalise not in ("none", None, False):
        raise CoderError(f"{path}: normalize_activations is {normalise!r}; this version reads coders with 'none' only.")
    reshape = config.get("reshape_activations", "none")
    hook = _hook_name(config)
    if reshape not in ("none", None) or (hook is not None and "hook_z" in hook):
        raise CoderError(
            f"{path}: the coder sits on {hook!r} and reshapes its input; this version reads coders of unreshaped activations."
        )
    if config.get("rescale_acts_by_decoder_norm"):
        raise CoderError(f"{path}: rescale_acts_by_decoder_norm is set; this version reads coders without it.")
    d_in, num_latents = config_int(path, config, "d_in"), config_int(path, config, "d_sae")
    required = {"W_enc", "W_dec", "b_enc", "b_dec"} | ({"threshold"} if architecture == "jumprelu" else set())
    weights = folder / WEIGHTS
    tensors = read_tensors(weights, required, {"scaling_factor"} if legacy else set())
    scaling = tensors.pop("scaling_factor", None)
    if scaling is not None and not bool((scaling == 1).all()):
        raise CoderError(
            f"{weights}: scaling_factor is not all ones; this version reads coders without fine-tuned scales."
        )
    expected = {
        "W_enc": (d_in, num_latents),
        "W_dec": (num_latents, d_in),
        "b_enc": (num_latents,),
        "b_dec": (d_in,),
        "threshold": (num_latents,),
    }
    for name, tensor in tensors.items():
        check_shape(weights, name, tensor, expected[name])
    activation: Activation
    if architecture == "topk":
        if config_int(path, {"k": k}, "k") > num_latents:
            raise CoderError(f"{path}: k is {k}, more than the {num_latents} latents.")
        activation = TopK(config_int(path, {"k": k}, "k"))
    elif architecture == "jumprelu":
        activation = JumpReLU(tensors["threshold"].float())
    else:
        activation = ReLU()
    subtract = bool(config.get("apply_b_dec_to_input", legacy))
    return SparseCoder(
        encoder_weight=tensors["W_enc"].float().T.contiguous(),
        encoder_bias=tensors["b_enc"].float(),
        decoder_weight=tensors["W_dec"].float(),
        decoder_bias=tensors["b_dec"].float(),
        activation=activation,
        shift=tensors["b_dec"].float() if subtract else None,
        hookpoint_in=hook,
        hookpoint_out=hook,
        format=f"sae_lens {architecture}",
        fingerprint=fingerprint_tensors(tensors),
        notes=(f"hookpoint {hook!r} from {CONFIG}",) if hook else (),
    )
