"""A Llama of half a million random weights, with a tokenizer and a chat template, to try a server with.

usage: python examples/vllm/make_tiny_llama.py FOLDER

Its answers are noise; what a server makes of requests (schemas, log-probabilities, seeds) is not. The tokenizer is a byte-level
BPE that is trained on this repository's own texts, so nothing is downloaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 1024
LONGEST = 4096
"""Tokens of prompt and answer together."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TURNS = ["<|system|>", "<|user|>", "<|assistant|>"]


def texts() -> list[str]:
    """This repository's Python and Markdown files."""
    root = Path(__file__).resolve().parents[2]
    places = [root, *(root / name for name in ("autointerp", "sae_core", "docs", "examples"))]
    paths = {path for place in places for ending in ("*.py", "*.md") for path in place.glob(ending)}
    return [path.read_text(encoding="utf-8") for path in sorted(paths)]


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE: every text can be written, and digits stand alone."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|begin|>", "<|end|>", *TURNS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts(), trainer)
    begin = raw.token_to_id("<|begin|>")  # before plain texts, as Llama's own tokenizers do
    raw.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|begin|>", eos_token="<|end|>", model_max_length=LONGEST
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def main(folder: Path) -> None:
    """Write the model and its tokenizer as the transformers library does."""
    torch.manual_seed(0)
    tokens = tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=False,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    digits = [tokens.convert_tokens_to_ids(digit) for digit in "0123456789"]
    with torch.no_grad():
        # weights of the usual size make all tokens about as likely; so it prefers some, as models do
        model.lm_head.weight.mul_(8)
        # and looks at some tokens more than at others, so that what comes next depends on what stands before
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(6)
            layer.self_attn.k_proj.weight.mul_(6)
        # one direction that every token has and that speaks for digits: who asks for numbers gets some
        model.model.embed_tokens.weight[:, 0] = 0.1
        model.lm_head.weight[digits, 0] = 2.0
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokens)} tokens")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
