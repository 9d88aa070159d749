"""Crosscoders of two models: ``cfg.json`` + ``cc_weights.pt``, or ``N_cfg.json`` + ``N.pt`` (Kissane et al. 2024).

Each model's activations must be scaled before they are read, by ``sqrt(d) / mean norm``; the file does not hold the factors.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from sae_core.coder import Fact, SparseCoder, fingerprint
from sae_core.errors import CoderError
from sae_core.formats.reading import Architecture, Options, check_finite, config_beside, read_config, text
from sae_core.parts.activation import ReLU
from sae_core.parts.encoder import AffineEncoder

NAME = "crosscoder_ckkissane"
TITLE = "crosscoder of two models (ckkissane)"
REFERENCE = "numpy encode"
FILES = "cfg.json + cc_weights.pt, or N.pt + N_cfg.json"
CONFIG, WEIGHTS = "cfg.json", "cc_weights.pt"
ARCHITECTURES = (
    Architecture("relu", "crosscoder_ckkissane/hub"),
    Architecture("relu, as the training code saves it", "crosscoder_ckkissane/local"),
)


def matches(path: Path) -> bool:
    """Whether ``path`` holds this format."""
    if (path / CONFIG).is_file() and (path / WEIGHTS).is_file():
        return True
    config = config_beside(path)
    return config is not None and "dict_size" in config and "d_in" in config


def read(path: Path, options: Options) -> SparseCoder:
    """A ReLU crosscoder of two models; it can be encoded and inspected, not attached to one subject."""
    weights_path = path / WEIGHTS if path.is_dir() else path
    where = path / CONFIG if path.is_dir() else path.with_name(f"{path.stem}_cfg.json")
    hook = text(where, "hook_point", read_config(where).get("hook_point"))
    stored = options.open(weights_path)
    models, d, num = stored.shape("W_enc", 3)
    scales = options.take_input_scale(models)
    if scales is None:
        raise CoderError(
            f"{weights_path} does not hold the factors that each model's activations are scaled by: set input_scale to the "
            f'{models} factors sqrt(d) / mean norm, or to "folded" if the weights contain them.'
        )
    weights = stored.read(
        {"W_enc": (models, d, num), "W_dec": (num, models, d), "b_enc": (num,), "b_dec": (models, d)},
        dtype=options.dtype,
        device=options.device,
    )
    factors = torch.tensor(scales, dtype=options.dtype, device=options.device)
    weights["W_enc"].mul_(factors[:, None, None])
    weights["W_dec"].div_(factors[None, :, None])
    weights["b_dec"].div_(factors[:, None])
    check_finite(weights_path, "a weight times its input scale", *weights.tensors.values())
    coder = SparseCoder(
        encoder=AffineEncoder(weights["W_enc"].view(models * d, num).T, weights["b_enc"], ReLU()),
        decoder_weight=weights["W_dec"].view(num, models * d),
        decoder_bias=weights["b_dec"].view(-1),
        hookpoints_in=(hook,) * models if hook else (),
        hookpoints_out=(hook,) * models if hook else (),
        num_hooks_in=models,
        num_hooks_out=models,
        num_subjects=models,
        format=NAME,
        architecture="relu",
        fingerprint="",
        facts=(
            Fact("hookpoint", f"{hook or 'not said'}, of {models} models", f"{where.name}: hook_point"),
            Fact("normalisation", f"inputs times {', '.join(f'{s:g}' for s in scales)}, folded", "given"),
        ),
    )
    return replace(coder, fingerprint=fingerprint(weights.digest, coder, (f"input scale {scales!r}",)))
