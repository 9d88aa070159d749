"""Crosscoders of science-of-finetuning's dictionary_learning: ``config.json`` + ``model.safetensors``, one encoder for several places.

Minder, Dumas et al. 2025, "Overcoming sparsity artifacts in crosscoders". Activations are reported times the sum of the
latent's decoder norms, which is folded into the weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from sae_core.coder import Fact, SparseCoder, fingerprint
from sae_core.errors import CoderError
from sae_core.formats.reading import Architecture, Options, as_threshold, check_finite, read_config, shown, text
from sae_core.parts.activation import Activation, JumpReLU, ReLU
from sae_core.parts.encoder import AffineEncoder
from sae_core.weights.stored import StoredFile

NAME = "crosscoder"
TITLE = "crosscoder (science-of-finetuning)"
REFERENCE = "numpy encode"
FILES = "config.json + model.safetensors with encoder.weight [places, d, latents]"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
ARCHITECTURES = (
    Architecture("relu", "crosscoder/relu"),
    Architecture("batchtopk", "crosscoder/batchtopk"),
    Architecture(
        "code normalisation other than CROSSCODER", "", refused="how it scales activations was not seen in use"
    ),
)
_CROSSCODER = 1
_STATISTICS = ("activation_mean", "activation_std", "activation_global_scale", "target_rms", "code_normalization_id")


def matches(path: Path) -> bool:
    """Whether ``path`` holds this format."""
    if not ((path / CONFIG).is_file() and (path / WEIGHTS).is_file()):
        return False
    try:
        with safe_open(path / WEIGHTS, framework="np") as file:
            return "encoder.weight" in file.keys() and len(file.get_slice("encoder.weight").get_shape()) == 3  # noqa: SIM118
    except (SafetensorError, OSError, UnicodeError):
        return True  # read() says what is wrong with it


def read(path: Path, options: Options) -> SparseCoder:
    """A crosscoder of ReLU or, with the threshold of inference, BatchTopK activation."""
    where = path / CONFIG
    config = read_config(where)
    if config.get("encoder_layers") is not None:
        raise CoderError(
            f"{where}: encoder_layers is set; crosscoders whose encoder reads some of the places only are not read."
        )
    if config.get("keep_relative_variance") is False:
        raise CoderError(
            f"{where}: keep_relative_variance is false; crosscoders that scale each dimension of their inputs are not read."
        )
    stored = options.open(path / WEIGHTS)
    hooks, d, num = stored.shape("encoder.weight", 3)
    code = stored.integer("code_normalization_id") if "code_normalization_id" in stored.tensors else _CROSSCODER
    if code != _CROSSCODER:
        raise CoderError(f"{stored.path}: code_normalization_id is {code}; only {_CROSSCODER} (CROSSCODER) is read.")
    said = config.get("code_normalization")
    if said not in (None, "CROSSCODER", _CROSSCODER):
        raise CoderError(f"{where}: code_normalization is {shown(said)}; only 'CROSSCODER' is read.")
    batch_topk = "threshold" in stored.tensors
    if not batch_topk and ("k" in stored.tensors or "TopK" in text(where, "dict_class", config.get("dict_class"))):
        raise CoderError(f"{stored.path} is a BatchTopK crosscoder's and has no threshold; fetch it again.")
    threshold = stored.number("threshold") if batch_topk else 0.0
    if not threshold >= 0:
        raise CoderError(
            f"{stored.path}: threshold is {threshold:g}, which means that training never set it; give a coder whose training ended."
        )
    mean, scale = _normalisation(stored, hooks, d)
    weights = stored.read(
        {
            "encoder.weight": (hooks, d, num),
            "encoder.bias": (num,),
            "decoder.weight": (hooks, num, d),
            "decoder.bias": (hooks, d),
        },
        ignored={*_STATISTICS, "threshold", "k"},
        hooks_first=["decoder.weight"],
        dtype=options.dtype,
        device=options.device,
    )
    encoder, decoder, bias = (weights[name] for name in ("encoder.weight", "decoder.weight", "decoder.bias"))
    norms = decoder.norm(dim=2).sum(1)
    encoder.mul_(norms)
    weights["encoder.bias"].mul_(norms)
    decoder.div_(norms.clamp_min(torch.finfo(norms.dtype).tiny)[:, None, None])
    shift = None
    if scale is not None and mean is not None:
        encoder.mul_(scale.to(encoder)[:, None, None])
        out_scale = (scale + 1e-8).to(encoder)  # as the library undoes it
        decoder.div_(out_scale[None, :, None])
        bias.div_(out_scale[:, None]).add_(mean.to(encoder))
        shift = mean.to(encoder).reshape(-1)
    check_finite(stored.path, "what is folded into the weights", encoder, weights["encoder.bias"], decoder, bias, shift)
    activation: Activation = ReLU()
    if batch_topk:
        activation = JumpReLU(as_threshold(stored.path, threshold, options.dtype, options.device))
    coder = SparseCoder(
        encoder=AffineEncoder(encoder.view(hooks * d, num).T, weights["encoder.bias"], activation),
        decoder_weight=decoder.view(num, hooks * d),
        decoder_bias=bias.view(-1),
        shift=shift,
        hookpoints_in=(),
        hookpoints_out=(),
        num_hooks_in=hooks,
        num_hooks_out=hooks,
        format=NAME,
        architecture="batchtopk" if batch_topk else "relu",
        fingerprint="",
        facts=(
            Fact("hookpoint", f"not said: {hooks} places, of one model or of several", "the format does not say"),
            Fact(
                "normalisation",
                "none" if scale is None else "mean and scale of each place, folded",
                f"{WEIGHTS}: activation_mean",
            ),
            Fact("activation scale", "times the sum of the decoder norms, folded", "code normalisation CROSSCODER"),
        ),
    )
    numbers = () if scale is None or mean is None else (str(scale.tolist()), str(mean.tolist()))
    return replace(coder, fingerprint=fingerprint(weights.digest, coder, (f"threshold {threshold!r}", *numbers)))


def _normalisation(stored: StoredFile, hooks: int, d: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """``(mean [H, d], scale [H])`` of the inputs; None where they are read as they are (NaN in the file, or nothing)."""
    if "activation_mean" not in stored.tensors:
        return None, None
    mean = stored.small("activation_mean", (hooks, d))
    if bool(torch.isnan(mean).all()):
        return None, None
    scale = stored.small("activation_global_scale", (hooks,))
    if not bool(torch.isfinite(mean).all()) or not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise CoderError(
            f"{stored.path}: activation_mean must be finite, or NaN throughout, and activation_global_scale, which is "
            f"{scale.tolist()}, {hooks} positive numbers: the file is damaged."
        )
    return mean, scale
