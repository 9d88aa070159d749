"""Qwen Scope: ``layer<N>.sae.pt``, a torch pickle; k is in the repository's name and its ``config.json``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from sae_core.coder import Fact, SparseCoder, fingerprint
from sae_core.errors import CoderError
from sae_core.formats.reading import Architecture, Options, active_latents, read_config
from sae_core.parts.activation import TopK
from sae_core.parts.encoder import AffineEncoder

NAME = "qwen_scope"
TITLE = "Qwen Scope"
REFERENCE = "sae-lens' converter"
FILES = "layer<N>.sae.pt (+ config.json)"
ARCHITECTURES = (Architecture("topk", "qwen_scope/res"),)
_NAME = re.compile(r"layer(\d+)\.sae\.pt")


def matches(path: Path) -> bool:
    """Whether ``path`` is a file of this format."""
    return bool(_NAME.fullmatch(path.name)) and path.is_file()


def read(path: Path, options: Options) -> SparseCoder:
    """A TopK coder of a block's output, nothing subtracted from the input."""
    found = _NAME.fullmatch(path.name)
    assert found is not None
    stored = options.open(path)
    num, d = stored.shape("W_enc", 2)
    k, origin = _k(path, options, num)
    weights = stored.read(
        {"W_enc": (num, d), "W_dec": (d, num), "b_enc": (num,), "b_dec": (d,)},
        dtype=options.dtype,
        device=options.device,
    )
    hook = f"layers.{found[1]}"
    coder = SparseCoder(
        encoder=AffineEncoder(weights["W_enc"], weights["b_enc"], TopK(k)),
        decoder_weight=weights["W_dec"].T,
        decoder_bias=weights["b_dec"],
        hookpoints_in=(hook,),
        hookpoints_out=(hook,),
        format=NAME,
        architecture="topk",
        fingerprint="",
        facts=(
            Fact("hookpoint", hook, "the file's name"),
            Fact("k", str(k), origin),
            Fact("normalisation", "none", "the format has none"),
        ),
    )
    return replace(coder, fingerprint=fingerprint(weights.digest, coder))


def _k(path: Path, options: Options, num_latents: int) -> tuple[int, str]:
    """k, and where it was read: what the sources say must agree."""
    said: dict[str, int] = {}
    if (given := options.take_k()) is not None:
        said["given"] = active_latents(path, given, num_latents)
    config = path.parent / "config.json"
    if config.is_file() and (value := read_config(config).get("k")) is not None:
        said["config.json: k"] = active_latents(config, value, num_latents)
    if named := re.search(r"SAE-Res-.+-W\d+K-L0_(\d+)(?:/|$)", path.parent.resolve().as_posix()):
        said["the repository's name"] = active_latents(path, int(named[1]), num_latents)
    if not said:
        raise CoderError(
            f"{path} does not say how many latents are active: keep the repository's name in the path, or set k."
        )
    if len(set(said.values())) > 1:
        raise CoderError(
            f"{path}: k is {' and '.join(f'{v} ({origin})' for origin, v in said.items())}; they must agree."
        )
    origin, k = next(iter(said.items()))
    return k, origin
