"""Places in a subject where a coder reads and writes, under one name for all model families.

A hookpoint names a module of the *base* model (the one without the language-model head) and one side of it:
``layers.1`` is the output of block 1, ``layers.1.mlp:input`` what its MLP reads. The names that other libraries
use for the same places (a full model's ``model.layers.1``, sparsify's ``layers.1`` on a GPT-2, TransformerLens's
``blocks.1.hook_resid_post``) are mapped here and nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from sae_core.errors import UnknownNameError, did_you_mean

_ATTENTION_NAMES = ("self_attn", "attention", "attn")
_TRANSFORMER_LENS = re.compile(r"blocks\.(\d+)\.(\w+)")


@dataclass(frozen=True, slots=True, order=True)
class Hookpoint:
    """One side of one module of a subject's base model."""

    module: str
    """Dotted name in the base model: ``layers.1``, ``h.3.mlp``, ``embed_tokens``."""
    io: Literal["output", "input"] = "output"
    """Which side of the module."""

    def __str__(self) -> str:
        return self.module if self.io == "output" else f"{self.module}:input"


def base_model(model: nn.Module) -> nn.Module:
    """The part of a Hugging Face causal LM below its head (the model itself, where it has no head)."""
    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model


def block_list_name(base: nn.Module) -> str:
    """Name of the ``ModuleList`` that holds the transformer blocks: ``layers`` or ``h``.

    Raises:
        UnknownNameError: the model has no list of as many blocks as its config says.
    """
    config: Any = getattr(base, "config", None)
    depth = getattr(config, "num_hidden_layers", None)
    name: str
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name
    raise UnknownNameError(
        f"The model {type(base).__name__} has no list of {depth} transformer blocks, so its layers cannot be named; "
        "use a decoder-only Llama-, GPT-NeoX- or GPT-2-style model."
    )


def _block_child(base: nn.Module, block: str, candidates: tuple[str, ...]) -> str | None:
    children = dict(base.get_submodule(block).named_children())
    return next((f"{block}.{name}" for name in candidates if name in children), None)


def _from_transformer_lens(base: nn.Module, name: str) -> Hookpoint | None:
    """The hookpoint of a TransformerLens hook name, ``None`` if it is not one that is known here."""
    if name == "hook_embed":
        embedding = base.get_input_embeddings()  # type: ignore[operator]
        return next((Hookpoint(n) for n, m in base.named_modules() if m is embedding), None)
    match = _TRANSFORMER_LENS.fullmatch(name)
    if match is None:
        return None
    blocks = block_list_name(base)
    index, hook = int(match[1]), match[2]
    block = f"{blocks}.{index}"
    if index >= len(base.get_submodule(blocks)):  # type: ignore[arg-type]
        return None
    if hook == "hook_resid_post":
        return Hookpoint(block)
    if hook == "hook_resid_pre":
        # What enters block 0 is not any one module's output in a GPT-2 (two embeddings are added there).
        return Hookpoint(block, "input") if index == 0 else Hookpoint(f"{blocks}.{index - 1}")
    children = {"hook_mlp_out": ("mlp",), "hook_attn_out": _ATTENTION_NAMES}.get(hook)
    child = _block_child(base, block, children) if children else None
    return Hookpoint(child) if child else None


def resolve_hookpoint(model: nn.Module, name: str | Hookpoint) -> Hookpoint:
    """The hookpoint that ``name`` means on ``model``.

    ``name`` may be relative to the base model (``layers.1.mlp``, ``layers.1:input``), to the full model
    (``model.layers.1``, ``transformer.h.1``), a block in another family's words (``layers.1`` on a GPT-2), or one of
    TransformerLens's ``blocks.N.hook_resid_pre / hook_resid_post / hook_mlp_out / hook_attn_out``.

    Raises:
        UnknownNameError: nothing in the model goes by that name; the nearest names are given.
    """
    base = base_model(model)
    given = str(name).strip()
    if (hookpoint := _from_transformer_lens(base, given)) is not None:
        return hookpoint
    module, _, side = given.partition(":")
    if side not in ("", "input", "output"):
        raise UnknownNameError(f"The hookpoint {given!r} ends in {side!r}; write ':input', ':output' or nothing.")
    io: Literal["output", "input"] = "input" if side == "input" else "output"
    known = {n for n, m in base.named_modules() if n and not isinstance(m, nn.ModuleList)}
    blocks = block_list_name(base)
    candidates = [module]
    prefix = str(getattr(model, "base_model_prefix", "") or getattr(base, "base_model_prefix", ""))
    if prefix:
        candidates.append(module.removeprefix(f"{prefix}."))
    candidates += [re.sub(r"^(?:layers|h|blocks)\.(?=\d)", f"{blocks}.", candidate) for candidate in list(candidates)]
    for candidate in candidates:
        if candidate in known:
            return Hookpoint(candidate, io)
    top = {n for n in known if n.count(".") <= blocks.count(".") + 2}
    raise UnknownNameError(
        f"The hookpoint {given!r} is not a module of {type(model).__name__}: {did_you_mean(candidates[-1], top)}"
    )


def block_index(base: nn.Module, hookpoint: Hookpoint) -> int | None:
    """Index of the transformer block that is, or holds, the hookpoint's module; ``None`` outside of the blocks."""
    match = re.match(rf"{re.escape(block_list_name(base))}\.(\d+)(?:\.|$)", hookpoint.module)
    return int(match[1]) if match else None


def first_tensor(value: object) -> torch.Tensor:
    """The activation in what a module gives or takes: a tensor, or the first tensor of a tuple (older blocks)."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], torch.Tensor):
        return value[0]
    raise TypeError(f"a module gave {type(value).__name__}, not a tensor or a tuple that starts with one")


def replace_first_tensor(value: object, tensor: torch.Tensor) -> Any:
    """``value`` with ``tensor`` in the place that :func:`first_tensor` reads."""
    return tensor if isinstance(value, torch.Tensor) else (tensor, *value[1:])  # type: ignore[index]
