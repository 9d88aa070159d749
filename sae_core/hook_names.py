"""What other libraries call the places in a transformer, and where Hugging Face's blocks have them. Torch-free.

One table for all model families: a name means a :class:`Place`, a place is the first of its candidate modules that a
block has. A family whose blocks use other module names is added as a candidate, not as a case of its own.

Where the meanings come from: TransformerLens's block (``hook_attn_out`` and ``hook_mlp_out`` are what is added to the
residual stream, so behind Gemma's second norms), circuit-tracer's wrapper of the MLP (``mlp.hook_in`` and
``mlp.hook_out`` are what the MLP itself reads and gives), dictionary_learning's module outputs (``mlp_out_layer_3``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Side = Literal["output", "input"]


@dataclass(frozen=True, slots=True)
class Child:
    """A module that may be the one that a name means."""

    path: str
    """Dotted name below the block, or below the module that holds the blocks; empty for that module itself."""
    beside: str | None = None
    """A child that must be there too."""
    without: str | None = None
    """A child that must not be there."""


@dataclass(frozen=True, slots=True)
class Place:
    """One side of the first child that a model has."""

    children: tuple[Child, ...]
    side: Side = "output"
    sequential_only: bool = False
    """Whether the place is there only where the MLP reads what the attention has written."""
    before_gain: bool = False
    """Whether the name means a norm's value before its gain and bias, which no module gives."""


@dataclass(frozen=True, slots=True)
class ForeignName:
    """A name of another library, taken apart."""

    place: Place
    layer: int | None
    """Index of the block, ``None`` for a place outside of the blocks."""


# Llama's post_attention_layernorm is the norm before the MLP; in a Gemma 2 or 3, which norms before and after, it is
# the norm behind the attention. The norm behind the MLP tells the two apart.
_NORM_BEHIND_MLP = "post_feedforward_layernorm"

_SELF = (Child(""),)
_ATTENTION = (Child("self_attn"), Child("attention"), Child("attn"))
_MLP = (Child("mlp"),)
_NORM_1 = (Child("input_layernorm"), Child("ln_1"))
_NORM_2 = (
    Child("pre_feedforward_layernorm"),
    Child("post_attention_layernorm", without=_NORM_BEHIND_MLP),
    Child("ln_2"),
)
_FINAL_NORM = (Child("norm"), Child("ln_f"), Child("final_layer_norm"), Child("final_layernorm"))
_EMBEDDING = (Child("embed_tokens"), Child("wte"), Child("embed_in"))
_ATTENTION_OUT = (Child("self_attn.o_proj"), Child("attn.c_proj"), Child("attention.dense"))
_MLP_GATE = (Child("mlp.gate_proj"), Child("mlp.c_fc"), Child("mlp.dense_h_to_4h"))
_MLP_OUT = (Child("mlp.down_proj"), Child("mlp.c_proj"), Child("mlp.dense_4h_to_h"))

BLOCK_PLACES: Mapping[str, Place] = {
    "hook_resid_pre": Place(_SELF, "input"),
    "hook_resid_mid": Place(_NORM_2, "input", sequential_only=True),
    "hook_resid_post": Place(_SELF),
    "hook_attn_out": Place((Child("post_attention_layernorm", beside=_NORM_BEHIND_MLP), *_ATTENTION)),
    "hook_mlp_in": Place(_NORM_2, "input"),
    "hook_mlp_out": Place((Child(_NORM_BEHIND_MLP), *_MLP)),
    "attn.hook_z": Place(_ATTENTION_OUT, "input"),
    "mlp.hook_in": Place(_MLP, "input"),
    "mlp.hook_pre": Place(_MLP_GATE),
    "mlp.hook_post": Place(_MLP_OUT, "input"),
    "mlp.hook_out": Place(_MLP),
    "ln1.hook_normalized": Place(_NORM_1, before_gain=True),
    "ln1.hook_out": Place(_NORM_1),
    "ln2.hook_normalized": Place(_NORM_2, before_gain=True),
    "ln2.hook_out": Place(_NORM_2),
}
"""TransformerLens's and circuit-tracer's names below ``blocks.N``."""

MODEL_PLACES: Mapping[str, Place] = {
    "hook_embed": Place(_EMBEDDING),
    "ln_final.hook_normalized": Place(_FINAL_NORM, before_gain=True),
    "ln_final.hook_out": Place(_FINAL_NORM),
}
"""TransformerLens's names outside of the blocks; children of the module that holds the block list."""

LAYER_PLACES: Mapping[str, Place] = {
    "resid_post": Place(_SELF),
    "resid_out": Place(_SELF),
    "mlp_out": Place(_MLP),
    "attn_out": Place(_ATTENTION),
}
"""dictionary_learning's names before ``_layer_N`` (before ``_layerN`` in its first releases)."""

BLOCK_LISTS = ("layers", "h", "blocks")
"""Words for the list of blocks."""

SYNONYMS: tuple[tuple[str, ...], ...] = (
    BLOCK_LISTS,
    tuple(child.path for child in _ATTENTION),
    tuple(child.path for child in _EMBEDDING),
)
"""Names of one module in different families; only those that are one thing in all of them."""

WRAPPERS = ("model", "transformer", "gpt_neox", "language_model")
"""What a full model calls the parts that hold the blocks; a name may begin with some of them."""

_BLOCK_NAME = re.compile(r"blocks\.([0-9]+)\.(.+)")
_LAYER_NAME = re.compile(r"(\w+)_layer_?([0-9]+)", re.ASCII)


def read_foreign_name(name: str) -> ForeignName | None:
    """What a name of TransformerLens, circuit-tracer or dictionary_learning means, ``None`` if it is none of theirs."""
    if (place := MODEL_PLACES.get(name)) is not None:
        return ForeignName(place, None)
    if (match := _BLOCK_NAME.fullmatch(name)) is not None:
        layer, hook = int(match[1]), match[2]
        if hook == "hook_resid_pre" and layer > 0:
            # One tensor has one hookpoint: what enters a block is named as what the block below gives.
            layer, hook = layer - 1, "hook_resid_post"
        place = BLOCK_PLACES.get(hook)
    elif (match := _LAYER_NAME.fullmatch(name)) is not None:
        layer, place = int(match[2]), LAYER_PLACES.get(match[1])
    else:
        return None
    return ForeignName(place, layer) if place is not None else None


def named_layer(name: str) -> int | None:
    """Index of the block that a name in any library's words speaks of, ``None`` if it speaks of none."""
    words = name.split(".")
    while words and words[0] in WRAPPERS:
        del words[0]
    if len(words) > 1 and words[0] in BLOCK_LISTS and words[1].isdecimal():
        return int(words[1])
    match = _LAYER_NAME.fullmatch(name)
    return int(match[2]) if match and match[1] in LAYER_PLACES else None


def layer_in(hookpoint: str) -> int | None:
    """The number of the layer that a hookpoint's name has."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|:|$)", hookpoint) or re.search(r"_(\d+)$", hookpoint)
    return int(found[1]) if found else named_layer(hookpoint)
