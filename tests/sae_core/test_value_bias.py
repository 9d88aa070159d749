"""Coders trained on a subject whose value biases TransformerLens had folded; truth is the folded model itself."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import Qwen2Config, Qwen2ForCausalLM

from sae_core.attachment import attach
from sae_core.coder import SparseCoder
from sae_core.errors import CoderError
from sae_core.loading import load_coder
from sae_core.parts.activation import ReLU
from sae_core.parts.encoder import AffineEncoder
from sae_core.subject import SubjectModel
from tests.sae_core.test_intervention_resume import VOCAB, WIDTH, tiny_subject
from tests.sae_core.test_loading import FIXTURES

LATENTS = 12


def subject_of(family: str) -> SubjectModel:
    if family != "qwen2":
        return tiny_subject(family)
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "max_position_embeddings": 64,
    }
    model = Qwen2ForCausalLM(Qwen2Config(**shape, num_attention_heads=4, num_key_value_heads=2))
    return SubjectModel(
        model, Tokenizer(WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0")), name=family, revision="test"
    )


def randomise_and_fold(subject: SubjectModel, family: str) -> SubjectModel:
    """Random value biases in ``subject``, and a copy of it in which those of block 1 are zero (attention weights do not see them)."""
    for name, parameter in subject.model.named_parameters():
        if name.endswith(("c_attn.bias", "query_key_value.bias", "v_proj.bias")):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    folded = copy.deepcopy(subject.model)
    if family == "gpt2":
        folded.transformer.h[1].attn.c_attn.bias[2 * WIDTH :] = 0
    elif family == "neox":
        folded.gpt_neox.layers[1].attention.query_key_value.bias.view(4, 3, -1)[:, 2] = 0
    elif family == "qwen2":
        folded.model.layers[1].self_attn.v_proj.bias[:] = 0
    return SubjectModel(folded, subject.tokenizer, name="folded", revision="test")


@pytest.mark.parametrize("family", ["gpt2", "neox", "qwen2", "llama"])
def test_a_coder_of_a_folded_subject_reads_what_it_was_trained_on(family: str) -> None:
    subject = subject_of(family)
    folded = randomise_and_fold(subject, family)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(LATENTS, WIDTH, generator=generator)
    hook = "blocks.1.attn.hook_z"
    plain = SparseCoder(
        encoder=AffineEncoder(weight, None, ReLU()),
        decoder_weight=weight,
        decoder_bias=torch.randn(WIDTH, generator=generator),
        shift=torch.randn(WIDTH, generator=generator),
        hookpoints_in=(hook,),
        hookpoints_out=(hook,),
        format="test",
        architecture="test",
        fingerprint="test",
    )
    tokens = torch.arange(VOCAB)[None] % VOCAB
    truth, given = attach(folded, plain), attach(subject, SparseCoder(**{**vars(plain), "value_biases_folded": True}))
    x_truth = truth.inputs(folded.capture(tokens, truth.read))[0]
    x = given.inputs(subject.capture(tokens, given.read))[0]
    acts = truth.coder.encode(x_truth)
    torch.testing.assert_close(given.coder.encode(x), acts, rtol=1e-4, atol=1e-5)
    # what it writes lacks the bias as well, and is put where the bias is
    expected = truth.coder.decode(acts) + (x - x_truth)
    torch.testing.assert_close(given.coder.decode(acts), expected, rtol=1e-4, atol=1e-5)
    assert ((x - x_truth).abs().max() > 0.1) == (family != "llama")


def test_which_coders_are_of_folded_subjects() -> None:
    (path,) = (FIXTURES / "connor_rob" / "hook_z").rglob("*.pt")
    assert load_coder(path, allow_pickle=True).value_biases_folded
    assert not load_coder(FIXTURES / "sae_lens" / "standard_hook_z").value_biases_folded


@pytest.mark.parametrize("hookpoint", ["layers.1", "wte", "layers.1.mlp:input"])
def test_a_folded_coder_attaches_to_an_attention_only(hookpoint: str) -> None:
    (path,) = (FIXTURES / "connor_rob" / "hook_z").rglob("*.pt")
    coder = load_coder(path, allow_pickle=True)
    moved = replace(
        coder,
        encoder=AffineEncoder(torch.ones(LATENTS, WIDTH), None, ReLU()),
        decoder_weight=torch.ones(LATENTS, WIDTH),
        decoder_bias=torch.zeros(WIDTH),
        shift=None,
        hookpoints_in=(hookpoint,),
        hookpoints_out=(hookpoint,),
    )
    with pytest.raises(CoderError, match="is no input of an attention's output projection"):
        attach(tiny_subject("gpt2"), moved)
