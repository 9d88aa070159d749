"""``load_coder``: from a folder or a hub id to a :class:`sae_core.coder.SparseCoder`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from sae_core.coder import JumpReLU, SparseCoder
from sae_core.errors import CoderError
from sae_core.formats import sae_lens, sparsify
from sae_core.hub import local_folder

READERS = (sparsify, sae_lens)


def load_coder(
    path_or_hub_id: str,
    *,
    hookpoint: str | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SparseCoder:
    """The sparse coder in a folder or a hub repository; ``hookpoint`` overrides what the coder itself says.

    Where the folder holds one folder a hookpoint (sparsify's layout), ``hookpoint`` chooses it.
    Raises MissingFileError or CoderError with a sentence; never guesses.
    """
    at_root = [name for reader in READERS for name in (reader.CONFIG, reader.WEIGHTS)]
    patterns = [f"{hookpoint}/*", *at_root] if hookpoint else None
    folder = local_folder(path_or_hub_id, what="a coder's path", revision=revision, allow_patterns=patterns)
    if hookpoint and not any(reader.matches(folder) for reader in READERS) and (folder / hookpoint).is_dir():
        folder = folder / hookpoint
    for reader in READERS:
        if reader.matches(folder):
            coder = reader.read(folder)
            break
    else:
        raise CoderError(_unknown_format(folder))
    if hookpoint is not None:
        hookpoint = hookpoint.removesuffix(":input")
        io = ":input" if (coder.hookpoint_in or "").endswith(":input") else ""
        coder = replace(
            coder, hookpoint_in=hookpoint + io, hookpoint_out=hookpoint, notes=(f"hookpoint {hookpoint!r} as given",)
        )
    return _moved(coder, device, dtype)


def _unknown_format(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is a file; give the folder that holds the coder's config and weights."
    inside = sorted(p.name for p in folder.iterdir())
    nested = [p.name for p in folder.iterdir() if p.is_dir() and any(reader.matches(p) for reader in READERS)]
    if nested:
        return f"{folder} holds one coder a hookpoint ({', '.join(sorted(nested))}): give one of these folders, or set the hookpoint."
    known = " or ".join(f"{reader.CONFIG} + {reader.WEIGHTS}" for reader in READERS)
    return f"{folder} holds {', '.join(inside[:8]) or 'nothing'}; a coder is {known}."


def _moved(coder: SparseCoder, device: str | torch.device, dtype: torch.dtype) -> SparseCoder:
    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device=device, dtype=dtype)

    activation = coder.activation
    if isinstance(activation, JumpReLU):
        activation = JumpReLU(move(activation.threshold))
    return replace(
        coder,
        encoder_weight=move(coder.encoder_weight),
        encoder_bias=move(coder.encoder_bias),
        decoder_weight=move(coder.decoder_weight),
        decoder_bias=move(coder.decoder_bias),
        shift=None if coder.shift is None else move(coder.shift),
        activation=activation,
    )
