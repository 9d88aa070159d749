"""The values' bias of an attention, as it stands in the input of its output projection.

Each row of attention weights sums to 1, so the bias passes through: ``z = attention @ (x W_V) + b_V``. TransformerLens folds it
into the output's bias (``fold_value_biases``), and coders that were trained on such a model read ``z - b_V``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae_core.errors import CoderError
from sae_core.hookpoints import Hookpoint, block_index, block_list_name
from sae_core.subject import SubjectModel


def value_bias(subject: SubjectModel, hookpoint: Hookpoint) -> Tensor | None:
    """[D] what the values' bias adds at ``hookpoint``, an attention's ``hook_z``; None where the subject has none.

    Raises CoderError for an attention whose values are not found.
    """
    block = block_index(subject.base, hookpoint)
    if block is None or hookpoint != subject.hookpoint(f"blocks.{block}.attn.hook_z"):
        raise CoderError(
            f"the coder was trained on an attention's heads without their values' bias, and {hookpoint} is no input of an attention's "
            "output projection: leave the hookpoint out, or give 'blocks.N.attn.hook_z'."
        )
    children = dict(subject.base.get_submodule(f"{block_list_name(subject.base)}.{block}").named_children())
    attention: Any = next((children[n] for n in ("self_attn", "attention", "attn") if n in children), None)
    if hasattr(attention, "v_proj"):  # Llama and its like: one bias a key/value head, shared by a group of heads
        bias = attention.v_proj.bias
        if bias is None:
            return None
        per_head = bias.view(-1, attention.head_dim)
        return torch.repeat_interleave(per_head, subject.width(hookpoint) // bias.numel(), dim=0).flatten()
    if hasattr(attention, "c_attn"):  # GPT-2: queries, keys and values side by side
        return None if attention.c_attn.bias is None else attention.c_attn.bias.chunk(3)[2]
    if hasattr(attention, "query_key_value"):  # GPT-NeoX: query, key and value of each head in turn
        bias = attention.query_key_value.bias
        heads = subject.config.num_attention_heads
        return None if bias is None else bias.view(heads, 3, -1)[:, 2].flatten()
    raise CoderError(
        f"the coder reads attention without its values' bias, and where this subject ({type(subject.base).__name__}) has that bias is not known: "
        "such coders attach to GPT-2, GPT-NeoX, Llama and their like."
    )
