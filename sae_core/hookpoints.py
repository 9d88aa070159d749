"""Places in a subject where a coder reads and writes, under one name for all model families.

A hookpoint names a module of the *base* model (the one without the language-model head) and one side of it:
``layers.1`` is the output of block 1, ``layers.1.mlp:input`` what its MLP reads. Names that other libraries use for
the same places (a full model's ``model.layers.1``, sparsify's ``layers.1`` on a GPT-2, TransformerLens's
``blocks.1.hook_resid_post``) are mapped here, by the table in :mod:`sae_core.hook_names`, and nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sae_core.errors import SubjectError, UnknownNameError, did_you_mean
from sae_core.hook_names import BLOCK_PLACES, SYNONYMS, WRAPPERS, Child, Side, named_layer, read_foreign_name

_PARALLEL_FLAG = "use_parallel_residual"
"""What a block whose MLP reads what the attention reads, not what it has written, says of itself."""


@dataclass(frozen=True, slots=True, order=True)
class Hookpoint:
    """One side of one module of a subject's base model."""

    module: str
    """Dotted name in the base model: ``layers.1``, ``h.3.mlp``, ``embed_tokens``."""
    io: Side = "output"
    """Which side of the module."""

    def __str__(self) -> str:
        return self.module if self.io == "output" else f"{self.module}:input"


def base_model(model: nn.Module) -> nn.Module:
    """The part of a Hugging Face causal LM below its head (the model itself, where it has no head)."""
    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model


def block_list_name(base: nn.Module) -> str:
    """Name of the ``ModuleList`` that holds the transformer blocks: ``layers``, ``h``, ``language_model.layers``.

    Raises:
        UnknownNameError: the model has no list of as many blocks as its config says.
    """
    config: Any = getattr(base, "config", None)
    depth = getattr(getattr(config, "text_config", config), "num_hidden_layers", None)
    found: list[str] = [n for n, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not found:
        raise UnknownNameError(
            f"The model {type(base).__name__} has no list of {depth} transformer blocks, so its layers cannot be "
            "named; use a decoder-only Llama-, GPT-NeoX- or GPT-2-style model."
        )
    if len(found) > 1:
        # A vision tower may have a list of the same length; the text blocks are the ones beside the token embedding.
        embedding = base.get_input_embeddings()  # type: ignore[operator]
        beside = [n for n in found if embedding in base.get_submodule(n.rpartition(".")[0]).children()]
        found = beside or found
    return found[0]


def _submodule(base: nn.Module, name: str) -> nn.Module | None:
    try:
        return base.get_submodule(name)
    except AttributeError:
        return None


def _is_place(base: nn.Module, name: str) -> bool:
    """Whether a name is a module that a forward pass calls (a list of modules is not called)."""
    module = _submodule(base, name) if name else None
    return module is not None and not isinstance(module, nn.ModuleList)


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)


def _first_child(base: nn.Module, parent: str, children: tuple[Child, ...]) -> str | None:
    """Name of the first of ``children`` that is there, ``None`` if none is."""

    def there(child: str | None) -> bool:
        return child is not None and _submodule(base, _join(parent, child)) is not None

    for child in children:
        if there(child.path) and (child.beside is None or there(child.beside)) and not there(child.without):
            return _join(parent, child.path)
    return None


def _from_foreign_name(model: nn.Module, base: nn.Module, blocks: str, name: str) -> Hookpoint | None:
    """The hookpoint of another library's name, ``None`` if it is no such name or the model has no such place.

    Raises:
        UnknownNameError: the name means a tensor that is never the input or output of a module of this model.
    """
    foreign = read_foreign_name(name)
    if foreign is None:
        return None
    place = foreign.place
    parent = blocks.rpartition(".")[0] if foreign.layer is None else f"{blocks}.{foreign.layer}"
    holder = _submodule(base, parent)
    module = _first_child(base, parent, place.children) if holder is not None else None
    if module is None:
        return None
    if place.before_gain:
        raise UnknownNameError(
            f"The hookpoint {name!r} is a norm's value before its gain, which no module of {type(model).__name__} "
            f"gives; undo the gain (and bias) of {module!r} in the coder's encoder and give {module!r} (the norm's output)."
        )
    if place.sequential_only and getattr(holder, _PARALLEL_FLAG, False):
        raise UnknownNameError(
            f"The hookpoint {name!r} is not in {type(model).__name__}, whose attention and MLP run side by side: "
            "nothing lies between them; give a coder of hook_resid_pre or hook_resid_post."
        )
    return Hookpoint(module, place.side)


def _in_own_words(base: nn.Module, start: str, path: str) -> str | None:
    """``path`` from ``start`` on in the words of this model's family, ``None`` if it leads to no place."""
    here = start
    for word in path.split("."):
        words = next((group for group in SYNONYMS if word in group), ())
        step = next((w for w in (word, *words) if _submodule(base, _join(here, w)) is not None), None)
        if step is None:
            return None
        here = _join(here, step)
    return here if _is_place(base, here) else None


def _find_module(base: nn.Module, blocks: str, name: str) -> str | None:
    """The module that ``name`` means: the base model's own name of it first, then what else it may be called."""
    if _is_place(base, name):
        return name
    starts = dict.fromkeys(("", blocks.rpartition(".")[0]))
    while name:
        for start in starts:
            if (found := _in_own_words(base, start, name)) is not None:
                return found
        first, _, name = name.partition(".")
        if first not in WRAPPERS:
            return None
    return None


def _split_side(base: nn.Module, name: str) -> tuple[str, Side]:
    """A name without its ending ``:input`` or ``.input`` (``output`` alike), and the side that it says."""
    module, _, side = name.partition(":")
    if side not in ("", "input", "output"):
        raise UnknownNameError(f"The hookpoint {name!r} ends in {side!r}; write ':input', ':output' or nothing.")
    if not side and not _is_place(base, module) and module.endswith((".input", ".output")):
        module, _, side = module.rpartition(".")
    return module, "input" if side == "input" else "output"


def resolve_hookpoint(model: nn.Module, name: str | Hookpoint) -> Hookpoint:
    """The hookpoint that ``name`` means on ``model``.

    ``name`` may be relative to the base model (``layers.1.mlp``, ``layers.1:input``) or to the full model
    (``model.layers.1``, ``transformer.h.1``), end in Gemma Scope's ``.input`` or ``.output``, use another family's
    words (``layers.1.self_attn`` on a GPT-2), or be TransformerLens's (``blocks.1.hook_resid_post``),
    circuit-tracer's (``blocks.1.mlp.hook_in``) or dictionary_learning's (``resid_post_layer_1``). A name that the
    base model itself has is always that module.

    Raises:
        UnknownNameError: nothing in the model goes by that name; the nearest names, or the number of layers, are given.
    """
    base = base_model(model)
    blocks = block_list_name(base)
    given = str(name).strip()
    module, io = _split_side(base, given)
    if _is_place(base, module):
        return Hookpoint(module, io)
    depth = len(base.get_submodule(blocks))  # type: ignore[arg-type]
    layer = named_layer(module)
    if layer is not None and layer >= depth:
        raise UnknownNameError(
            f"The hookpoint {given!r} is in layer {layer}, but {type(model).__name__} has {depth} layers "
            f"({blocks}.0 to {blocks}.{depth - 1}); give one of these."
        )
    if (hookpoint := _from_foreign_name(model, base, blocks, given)) is not None:
        return hookpoint
    if (found := _find_module(base, blocks, module)) is not None:
        return Hookpoint(found, io)
    known = {n for n, m in base.named_modules() if n and not isinstance(m, nn.ModuleList)}
    near = {n for n in known if n.count(".") <= blocks.count(".") + 2}
    if layer is not None and given.startswith("blocks."):
        near |= {f"blocks.{layer}.{hook}" for hook in BLOCK_PLACES}
    raise UnknownNameError(
        f"The hookpoint {given!r} is not a place in {type(model).__name__} (its blocks are {blocks}.0 to "
        f"{blocks}.{depth - 1}): {did_you_mean(given, near)}"
    )


def edited_at(model: nn.Module, hookpoint: Hookpoint) -> Hookpoint:
    """Where something must be added for the tensor at ``hookpoint`` to change for all that read it.

    That is the hookpoint itself, but for the residual stream between attention and MLP (``hook_resid_mid``): no module
    gives it, the norm before the MLP only reads it, and what is added to the attention's output is added to it.
    """
    base = base_model(model)
    block = block_index(base, hookpoint)
    if block is None or hookpoint.io != "input":
        return hookpoint
    name = f"{block_list_name(base)}.{block}"
    middle, attention = BLOCK_PLACES["hook_resid_mid"], BLOCK_PLACES["hook_attn_out"]
    between = not getattr(_submodule(base, name), _PARALLEL_FLAG, False)
    added = _first_child(base, name, attention.children)
    if between and added is not None and hookpoint.module == _first_child(base, name, middle.children):
        return Hookpoint(added, attention.side)
    return hookpoint


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
    raise SubjectError(
        f"a module gives {type(value).__name__}, not a tensor or a tuple that starts with one: give a hookpoint whose module does."
    )


def replace_first_tensor(value: object, tensor: torch.Tensor) -> Any:
    """``value`` with ``tensor`` in the place that :func:`first_tensor` reads."""
    return tensor if isinstance(value, torch.Tensor) else (tensor, *value[1:])  # type: ignore[index]
