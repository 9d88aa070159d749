"""Pickles of two linear layers with a ReLU between, told apart by their names: Goodfire's and qresearch's Llama SAEs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from sae_core.coder import Fact, SparseCoder, fingerprint
from sae_core.formats.reading import Architecture, Options
from sae_core.parts.activation import ReLU
from sae_core.parts.encoder import AffineEncoder

NAME = "linear_pair"
TITLE = "Goodfire, qresearch"
REFERENCE = "sae-lens' converter"
FILES = "<model>-SAE-l<layer>.pth (Goodfire, qresearch)"
ARCHITECTURES = (Architecture("Goodfire", "goodfire/layer"), Architecture("qresearch", "deepseek_r1/layer"))
_NAME = re.compile(r".+-SAE-l(\d+)\.(?:pt|pth)")


def matches(path: Path) -> bool:
    """Whether ``path`` is a file of this format."""
    return bool(_NAME.fullmatch(path.name)) and path.is_file()


def read(path: Path, options: Options) -> SparseCoder:
    """A ReLU coder of a block's output, nothing subtracted from the input."""
    found = _NAME.fullmatch(path.name)
    assert found is not None
    stored = options.open(path)
    goodfire = "encoder_linear.weight" in stored.tensors
    end = "_linear" if goodfire else ""
    num, d = stored.shape(f"encoder{end}.weight", 2)
    weights = stored.read(
        {
            f"encoder{end}.weight": (num, d),
            f"encoder{end}.bias": (num,),
            f"decoder{end}.weight": (d, num),
            f"decoder{end}.bias": (d,),
        },
        dtype=options.dtype,
        device=options.device,
    )
    hook = f"layers.{found[1]}"
    coder = SparseCoder(
        encoder=AffineEncoder(weights[f"encoder{end}.weight"], weights[f"encoder{end}.bias"], ReLU()),
        decoder_weight=weights[f"decoder{end}.weight"].T,
        decoder_bias=weights[f"decoder{end}.bias"],
        hookpoints_in=(hook,),
        hookpoints_out=(hook,),
        format=NAME,
        architecture="Goodfire" if goodfire else "qresearch",
        fingerprint="",
        facts=(Fact("hookpoint", hook, "the file's name"), Fact("normalisation", "none", "the format has none")),
    )
    return replace(coder, fingerprint=fingerprint(weights.digest, coder))
