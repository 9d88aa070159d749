"""The first attention SAEs of GPT-2 small: ``<name>.pt`` + ``<name>_cfg.json`` (Kissane, Krzyzanowski et al. 2024)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sae_core.coder import Fact, SparseCoder, fingerprint
from sae_core.errors import CoderError
from sae_core.formats.reading import Architecture, Options, config_beside, positive_int, read_config, text
from sae_core.parts.activation import ReLU
from sae_core.parts.encoder import AffineEncoder

NAME = "connor_rob"
TITLE = "GPT-2 attention SAEs (Kissane et al.)"
REFERENCE = "sae-lens' converter"
FILES = "<name>.pt + <name>_cfg.json with act_size, dict_size, act_name"
ARCHITECTURES = (Architecture("standard", "connor_rob/hook_z"),)


def matches(path: Path) -> bool:
    """Whether ``path`` is a file of this format."""
    config = config_beside(path)
    return config is not None and "act_size" in config


def read(path: Path, options: Options) -> SparseCoder:
    """A ReLU coder that subtracts ``b_dec``."""
    where = path.with_name(f"{path.stem}_cfg.json")
    config = read_config(where)
    d, num = (positive_int(where, key, config.get(key)) for key in ("act_size", "dict_size"))
    weights = options.open(path).read(
        {"W_enc": (d, num), "W_dec": (num, d), "b_enc": (num,), "b_dec": (d,)},
        dtype=options.dtype,
        device=options.device,
    )
    hook = text(where, "act_name", config.get("act_name")) or next(iter(options.hookpoints), "")
    if not hook.endswith("attn.hook_z"):
        raise CoderError(
            f"{where}: act_name is {hook or 'not said'}; of these coders those of 'blocks.N.attn.hook_z' are read, the others saw a "
            "subject with centred weights."
        )
    coder = SparseCoder(
        encoder=AffineEncoder(weights["W_enc"].T, weights["b_enc"], ReLU()),
        decoder_weight=weights["W_dec"],
        decoder_bias=weights["b_dec"],
        shift=weights["b_dec"],
        value_biases_folded=True,  # trained on TransformerLens' defaults
        hookpoints_in=(hook,) if hook else (),
        hookpoints_out=(hook,) if hook else (),
        format=NAME,
        architecture="standard",
        fingerprint="",
        facts=(
            Fact("hookpoint", hook, f"{where.name}: act_name"),
            Fact("value biases", "taken off the inputs", "trained on TransformerLens' defaults"),
            Fact("normalisation", "none", "the format has none"),
        ),
    )
    return replace(coder, fingerprint=fingerprint(weights.digest, coder))
