"""The planted world: a hand-built transformer and coder whose latents have known meanings, and a corpus for them.

The subject is a two-block GPT-2 whose weights are set by hand. Its residual stream holds, one slot a fact: the token
(one-hot), the token before it (copied by block 0's attention), the position, and a few spare slots. The coder sits
on ``h.0`` and reads those slots, so what each latent fires on is known exactly, in words:

====== ================================== ===============================================================
latent fires on                           writes to
====== ================================== ===============================================================
0      digits (``1 + d / 10``)            its own token slot
1      ``self`` right after ``(``         its own token slot
2      any token right after ``(``        its own token slot
3      nothing (dead)                     –
4      ``zzz`` (rare)                     its own token slot
5      ``def``                            a spare slot that raises the logit of ``return`` by GAIN
6      ``return``                         a spare slot that nothing reads
7      ``cls``                            a spare slot that block 1's MLP carries to the logit of ``(``, times GAIN
8      the first token of a context       its own token slot
9..15  one or two plain words each        their token slots
====== ================================== ===============================================================

The embeddings of ``def``, ``return`` and ``cls`` write 1 into the spare slots of latents 5, 6 and 7, so that taking
such a latent out takes away what the subject itself put there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sae_core.coder import SparseCoder
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder

BOS = "<s>"
DIGITS = [str(d) for d in range(10)]
WORDS = [f"w{i}" for i in range(20)]
VOCABULARY = [BOS, "(", ")", "self", "cls", "def", "return", "zzz", *DIGITS, *WORDS]
CONTEXT = 64
V, SPARE = len(VOCABULARY), 8
D = 2 * V + CONTEXT + SPARE
TOKEN, BEFORE, POSITION, FREE = 0, V, 2 * V, 2 * V + CONTEXT
CONSTANT = D - 1
"""A slot with the same large value everywhere: it fixes the layer norms' scale, so that other slots stay exact."""
LATER, UNREAD, KNOWN = FREE, FREE + 1, FREE + 2
NUM_LATENTS = 16
GAIN = 8.0
"""How far latents 5 and 7 raise their logit, in nats."""


def token_id(word: str) -> int:
    return VOCABULARY.index(word)


def _identity_norm(norm: torch.nn.LayerNorm) -> None:
    """Set a layer norm so that it leaves (token, token before, position, constant) vectors as they are."""
    example = torch.zeros(D, dtype=torch.float64)
    example[[TOKEN, POSITION]] = 1.0
    example[CONSTANT] = 100.0
    norm.weight.data.fill_(float((example.var(unbiased=False) + norm.eps).sqrt()))
    norm.bias.data.fill_(float(example.mean()))


def build_subject() -> GPT2LMHeadModel:
    """The hand-set GPT-2."""
    config = GPT2Config(
        vocab_size=V,
        n_positions=CONTEXT,
        n_embd=D,
        n_layer=2,
        n_head=1,
        n_inner=4,
        activation_function="relu",
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        parameter.data.zero_()
    base = model.transformer
    base.wte.weight.data[:, TOKEN : TOKEN + V] = torch.eye(V)
    for word, slot in (("def", KNOWN), ("return", UNREAD), ("cls", LATER)):
        base.wte.weight.data[token_id(word), slot] = 1.0
    base.wpe.weight.data[:, POSITION : POSITION + CONTEXT] = torch.eye(CONTEXT)
    base.wpe.weight.data[:, CONSTANT] = 100.0
    for norm in (base.h[0].ln_1, base.h[0].ln_2, base.h[1].ln_1, base.h[1].ln_2, base.ln_f):
        _identity_norm(norm)
    # Block 0: position p asks for position p - 1 and copies its token into the BEFORE slots.
    attention = base.h[0].attn
    query, key, value = (attention.c_attn.weight.data[:, i * D : (i + 1) * D] for i in range(3))
    for p in range(1, CONTEXT):
        query[POSITION + p, p - 1] = 60.0 * D**0.5
    for p in range(CONTEXT):
        key[POSITION + p, p] = 1.0
    value[TOKEN : TOKEN + V, :V] = torch.eye(V)
    attention.c_proj.weight.data[:V, BEFORE : BEFORE + V] = torch.eye(V)
    # Block 1: the MLP carries slot LATER to the slot that is read as "(".
    base.h[1].mlp.c_fc.weight.data[LATER, 0] = 1.0
    base.h[1].mlp.c_proj.weight.data[0, TOKEN + token_id("(")] = GAIN
    model.lm_head.weight.data[:, TOKEN : TOKEN + V] = torch.eye(V)
    model.lm_head.weight.data[token_id("return"), KNOWN] = GAIN
    return model


def build_coder() -> SparseCoder:
    """JumpReLU coder on ``h.0`` with the meanings of the table above."""
    encoder = torch.zeros(NUM_LATENTS, D)
    bias = torch.zeros(NUM_LATENTS)
    decoder = torch.zeros(NUM_LATENTS, D)
    for digit, word in enumerate(DIGITS):
        encoder[0, TOKEN + token_id(word)] = 1.0 + digit / 10
    encoder[1, TOKEN + token_id("self")] = encoder[1, BEFORE + token_id("(")] = 1.0
    bias[1] = -1.0
    encoder[2, BEFORE + token_id("(")] = 1.0
    bias[3] = -10.0
    for latent, word in ((4, "zzz"), (5, "def"), (6, "return"), (7, "cls")):
        encoder[latent, TOKEN + token_id(word)] = 1.0
    encoder[8, BEFORE + token_id(BOS)] = 1.0
    for latent in range(9, NUM_LATENTS):
        encoder[latent, TOKEN + token_id(f"w{latent - 9}")] = 1.0
        encoder[latent, TOKEN + token_id(f"w{latent}")] = 0.8
    for latent, slot in ((0, 17), (1, 3), (2, 2), (4, 7), (8, 5), *((i, 20 + i) for i in range(9, NUM_LATENTS))):
        decoder[latent, TOKEN + slot] = 1.0
    decoder[3, TOKEN] = 1.0
    decoder[5, KNOWN] = decoder[6, UNREAD] = decoder[7, LATER] = 1.0
    return SparseCoder(
        encoder=AffineEncoder(encoder, bias, JumpReLU(torch.full((NUM_LATENTS,), 0.5))),
        decoder_weight=decoder,
        decoder_bias=torch.zeros(D),
        hookpoints_in=("h.0",),
        hookpoints_out=("h.0",),
        format="planted",
        architecture="jumprelu",
        fingerprint="planted",
    )


MEANING: dict[int, Callable[[list[str], int], float]] = {
    0: lambda words, i: 1 + int(words[i]) / 10 if words[i] in DIGITS else 0.0,
    1: lambda words, i: float(words[i] == "self" and words[i - 1] == "("),
    2: lambda words, i: float(words[i - 1] == "("),
    3: lambda words, i: 0.0,
    4: lambda words, i: float(words[i] == "zzz"),
    5: lambda words, i: float(words[i] == "def"),
    6: lambda words, i: float(words[i] == "return"),
    7: lambda words, i: float(words[i] == "cls"),
    8: lambda words, i: float(i == 1),
}
"""Activation of a latent at place ``i > 0`` of a context's words, the BOS at place 0."""
for _latent in range(9, NUM_LATENTS):
    MEANING[_latent] = lambda words, i, n=_latent: 1.0 if words[i] == f"w{n - 9}" else 0.8 * (words[i] == f"w{n}")


def write_jumprelu(folder: Path, coder: SparseCoder) -> None:
    """Write a coder with JumpReLU activation in SAELens' layout."""
    encoder = coder.encoder
    if not isinstance(encoder, AffineEncoder) or not isinstance(encoder.activation, JumpReLU) or encoder.bias is None:
        raise TypeError("the planted coder has JumpReLU activation")
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": "jumprelu",
        "d_in": coder.d_in,
        "d_sae": coder.num_latents,
        "dtype": "float32",
        "apply_b_dec_to_input": coder.shift is not None,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": coder.hookpoints_out[0], "sae_lens_version": "6.0.0"},
    }
    save_file(
        {
            "W_enc": encoder.weight.T.contiguous(),
            "W_dec": coder.decoder_weight.contiguous(),
            "b_enc": encoder.bias.contiguous(),
            "b_dec": coder.decoder_bias.contiguous(),
            "threshold": torch.as_tensor(encoder.activation.threshold).contiguous(),
        },
        folder / "sae_weights.safetensors",
    )
    (folder / "cfg.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class PlantedWorld:
    """Folders of the planted world."""

    folder: Path
    subject: Path
    coder: Path
    corpus: Path


def build(folder: Path, num_documents: int = 240, seed: int = 0) -> PlantedWorld:
    """Write subject, coder and corpus below ``folder``."""
    subject, coder, corpus = folder / "subject", folder / "coder", folder / "corpus.jsonl"
    build_subject().save_pretrained(subject)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="w19"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([BOS])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, model_max_length=CONTEXT).save_pretrained(
        subject
    )
    write_jumprelu(coder, build_coder())

    generator = np.random.default_rng(seed)
    weights = np.ones(V)
    weights[[token_id("("), token_id("self")]] = 4.0
    weights[[token_id(BOS), token_id("zzz")]] = 0.0
    weights /= weights.sum()
    with corpus.open("w") as out:
        for number in range(num_documents):
            words = [VOCABULARY[i] for i in generator.choice(V, int(generator.integers(40, 160)), p=weights)]
            if number % 20 == 0:
                words[len(words) // 2] = "zzz"
            out.write(json.dumps({"text": " ".join(words)}) + "\n")
    return PlantedWorld(folder, subject, coder, corpus)
