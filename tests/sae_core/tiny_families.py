"""Tiny random models of every family whose places have names, with the module names written out by hand.

Norm gains and all biases are random too: a norm that does nothing would hide that its input was taken for its output.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn

from sae_core.subject import SubjectModel

VOCAB, WIDTH, DEPTH, HIDDEN = 40, 24, 3, 32


@dataclass(frozen=True)
class Family:
    """What Hugging Face calls the parts of one family; read off its modelling code."""

    architecture: str
    config: str
    base: str
    """What the full model calls its base model."""
    stem: str
    """What in the base model holds blocks, embedding and final norm."""
    blocks: str
    embedding: str
    final_norm: str
    attention: str
    attention_out: str
    norm_1: str
    norm_2: str
    mlp: str
    mlp_gate: str
    mlp_up: str | None
    mlp_down: str
    activation: str
    norm_behind_attention: str | None = None
    norm_behind_mlp: str | None = None
    parallel: bool = False

    def name(self, *parts: str) -> str:
        """A dotted name in the base model."""
        return ".".join(part for part in (self.stem, *parts) if part)

    def block(self, layer: int, child: str = "") -> str:
        """Name in the base model of a block, or of a child of it."""
        return self.name(self.blocks, str(layer), child)


def _llama_like(name: str, *, sandwich: bool = False, stem: str = "", config: str = "", model: str = "") -> Family:
    return Family(
        architecture=model or f"{name}ForCausalLM",
        config=config or f"{name}Config",
        base="model",
        stem=stem,
        blocks="layers",
        embedding="embed_tokens",
        final_norm="norm",
        attention="self_attn",
        attention_out="o_proj",
        norm_1="input_layernorm",
        norm_2="pre_feedforward_layernorm" if sandwich else "post_attention_layernorm",
        mlp="mlp",
        mlp_gate="gate_proj",
        mlp_up="up_proj",
        mlp_down="down_proj",
        activation="act_fn",
        norm_behind_attention="post_attention_layernorm" if sandwich else None,
        norm_behind_mlp="post_feedforward_layernorm" if sandwich else None,
    )


def _neox(*, parallel: bool) -> Family:
    return Family(
        architecture="GPTNeoXForCausalLM",
        config="GPTNeoXConfig",
        base="gpt_neox",
        stem="",
        blocks="layers",
        embedding="embed_in",
        final_norm="final_layer_norm",
        attention="attention",
        attention_out="dense",
        norm_1="input_layernorm",
        norm_2="post_attention_layernorm",
        mlp="mlp",
        mlp_gate="dense_h_to_4h",
        mlp_up=None,
        mlp_down="dense_4h_to_h",
        activation="act",
        parallel=parallel,
    )


FAMILIES = {
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        config="GPT2Config",
        base="transformer",
        stem="",
        blocks="h",
        embedding="wte",
        final_norm="ln_f",
        attention="attn",
        attention_out="c_proj",
        norm_1="ln_1",
        norm_2="ln_2",
        mlp="mlp",
        mlp_gate="c_fc",
        mlp_up=None,
        mlp_down="c_proj",
        activation="act",
    ),
    "neox_parallel": _neox(parallel=True),
    "neox_sequential": _neox(parallel=False),
    "llama": _llama_like("Llama"),
    "mistral": _llama_like("Mistral"),
    "qwen2": _llama_like("Qwen2"),
    "qwen3": _llama_like("Qwen3"),
    "gemma2": _llama_like("Gemma2", sandwich=True),
    "gemma3_text": _llama_like("Gemma3", sandwich=True, config="Gemma3TextConfig"),
    "gemma3_multimodal": _llama_like(
        "Gemma3", sandwich=True, stem="language_model", model="Gemma3ForConditionalGeneration"
    ),
}


def _config(key: str) -> transformers.PreTrainedConfig:
    family = FAMILIES[key]
    if key == "gpt2":
        return transformers.GPT2Config(
            vocab_size=VOCAB,
            n_embd=WIDTH,
            n_inner=HIDDEN,
            n_layer=DEPTH,
            n_head=4,
            n_positions=32,
            bos_token_id=None,
            eos_token_id=None,
        )
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if "neox" in key:
        return transformers.GPTNeoXConfig(**sizes | {"num_attention_heads": 3}, use_parallel_residual=family.parallel)
    # Heads whose widths do not add up to the model's, so that hook_z cannot be taken for a residual place.
    sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    if "gemma" in key:
        sizes |= {"sliding_window": 4, "query_pre_attn_scalar": 8}
    if key != "gemma3_multimodal":
        return getattr(transformers, family.config)(**sizes)
    # As many vision layers as text layers: their list must not be taken for the blocks.
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 2,
    }
    return transformers.Gemma3Config(
        text_config=sizes, vision_config=vision, mm_tokens_per_image=4, image_token_id=VOCAB + 1
    )


@cache
def tiny_family(key: str) -> SubjectModel:
    """A subject of one of :data:`FAMILIES`, the same object each time."""
    torch.manual_seed(list(FAMILIES).index(key))
    model = getattr(transformers, FAMILIES[key].architecture)(_config(key))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.25)
            else:
                # Gemma's gains are stored less one.
                one = float(name.endswith("weight") and "gemma" not in key)
                nn.init.normal_(parameter, mean=one, std=0.4)
    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    return SubjectModel(model, tokenizer, name=key, revision="test")
