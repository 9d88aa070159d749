"""sparsify's coders: ``cfg.json`` + ``sae.safetensors`` in a folder that is named after the hookpoint (FORMATS A.2)."""

from __future__ import annotations

from pathlib import Path

from sae_core.coder import SparseCoder, TopK, fingerprint_tensors
from sae_core.errors import CoderError
from sae_core.formats.reading import check_shape, config_int, read_config, read_tensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def matches(folder: Path) -> bool:
    """Whether ``folder`` holds this format."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path) -> SparseCoder:
    """An SAE or a transcoder with TopK activation; what is not understood is refused.

    A transcoder reads its module's input and does not subtract ``b_dec``; an SAE reads the output and does.
    """
    path = folder / CONFIG
    config = read_config(path)
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise CoderError(
            f"{path}: activation is {activation!r}; this version reads sparsify coders with activation 'topk'."
        )
    if config.get("skip_connection"):
        raise CoderError(
            f"{path}: skip_connection is set; this version reads sparsify coders without a skip connection."
        )
    if config.get("signed"):
        raise CoderError(f"{path}: signed is set; this version reads sparsify coders with non-negative activations.")
    d_in = config_int(path, config, "d_in")
    num_latents = config.get("num_latents") or d_in * config_int(path, config, "expansion_factor")
    k = config_int(path, config, "k")
    tensors = read_tensors(folder / WEIGHTS, {"encoder.weight", "encoder.bias", "W_dec", "b_dec"})
    check_shape(folder / WEIGHTS, "encoder.weight", tensors["encoder.weight"], (num_latents, d_in))
    check_shape(folder / WEIGHTS, "encoder.bias", tensors["encoder.bias"], (num_latents,))
    check_shape(folder / WEIGHTS, "W_dec", tensors["W_dec"], (num_latents, d_in))
    check_shape(folder / WEIGHTS, "b_dec", tensors["b_dec"], (d_in,))
    if k > num_latents:
        raise CoderError(f"{path}: k is {k}, more than the {num_latents} latents.")
    transcode = bool(config.get("transcode", False))
    module = folder.resolve().name
    return SparseCoder(
        encoder_weight=tensors["encoder.weight"].float(),
        encoder_bias=tensors["encoder.bias"].float(),
        decoder_weight=tensors["W_dec"].float(),
        decoder_bias=tensors["b_dec"].float(),
        activation=TopK(k),
        shift=None if transcode else tensors["b_dec"].float(),
        hookpoint_in=f"{module}:input" if transcode else module,
        hookpoint_out=module,
        format="sparsify",
        fingerprint=fingerprint_tensors(tensors),
        notes=(f"hookpoint from the folder's name {module!r}",),
    )
