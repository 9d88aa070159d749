"""Running only the upper layers gives what a hand-written hook on the plain full forward pass gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from sae_core.intervention.resume import Rows, UpperLayers
from sae_core.subject import SubjectModel

VOCAB, WIDTH, DEPTH = 50, 32, 3


def tiny_subject(family: str) -> SubjectModel:
    torch.manual_seed(0)
    if family == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=WIDTH,
                intermediate_size=48,
                num_hidden_layers=DEPTH,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                initializer_range=0.2,
            )
        )
    elif family == "neox":
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=VOCAB,
                hidden_size=WIDTH,
                intermediate_size=48,
                num_hidden_layers=DEPTH,
                num_attention_heads=4,
                max_position_embeddings=64,
                initializer_range=0.2,
            )
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=DEPTH, n_head=4, n_positions=64, initializer_range=0.2)
        )
    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    return SubjectModel(model, tokenizer, name=family, revision="test")


def plain_logits(subject: SubjectModel, name: str, tokens: np.ndarray, start: int, delta: torch.Tensor) -> torch.Tensor:
    """Logits of the whole model with a forward hook that adds ``delta`` from ``start`` on."""
    point = subject.hookpoint(name)
    module = subject.base.get_submodule(point.module)

    def edited(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        hidden[0, start : start + len(delta)] += delta
        return hidden

    if point.io == "output":
        handle = module.register_forward_hook(
            lambda _m, _a, out: edited(out) if isinstance(out, torch.Tensor) else (edited(out[0]), *out[1:])
        )
    else:
        handle = module.register_forward_pre_hook(
            lambda _m, args, kwargs: (
                ((edited(args[0]), *args[1:]), kwargs)
                if args
                else (args, kwargs | {"hidden_states": edited(kwargs["hidden_states"])})
            ),
            with_kwargs=True,
        )
    try:
        with torch.no_grad():
            return subject.model(input_ids=torch.from_numpy(tokens)[None]).logits[0]
    finally:
        handle.remove()


NAMES = ["layers.0", "layers.1", "layers.2", "layers.1.mlp", "layers.0.mlp", "blocks.1.hook_attn_out", "layers.0:input"]


@pytest.mark.parametrize("family", ["llama", "neox", "gpt2"])
@pytest.mark.parametrize("name", [*NAMES, "layers.2.mlp:input", "hook_embed"])
@pytest.mark.parametrize("fused", [True, False])
def test_packed_rows_equal_a_hook_on_the_full_forward_pass(family: str, name: str, fused: bool) -> None:
    subject = tiny_subject(family)
    rng = np.random.default_rng(1)
    point = subject.hookpoint(name)
    upper = UpperLayers(subject, point, fused=fused)
    contexts = [rng.integers(0, VOCAB, size) for size in (40, 23)]
    rows = Rows(
        start=np.array([5, 9, 5, 30, 0, 20]),
        stop=np.array([12, 23, 6, 40, 8, 21]),
        context=np.array([0, 0, 0, 0, 1, 1]),
    )
    delta = torch.from_numpy(rng.normal(size=(int(rows.lengths.sum()), WIDTH))).float() * 0.5
    final = upper.run(upper.clean(contexts), rows, delta)
    logits = final @ subject.model.get_output_embeddings().weight.T
    for r in range(len(rows.start)):
        mine = torch.from_numpy(rows.row == r)
        start, stop = int(rows.start[r]), int(rows.stop[r])
        expected = plain_logits(subject, name, contexts[rows.context[r]], start, delta[mine])
        torch.testing.assert_close(logits[mine], expected[start:stop], atol=1e-5, rtol=1e-5)


def test_rows_leave_the_subject_as_it_was() -> None:
    subject = tiny_subject("llama")
    tokens = torch.arange(20)[None]
    before = subject.logits(tokens)
    upper = UpperLayers(subject, subject.hookpoint("layers.1"))
    clean = upper.clean([np.arange(20)])
    upper.run(clean, Rows(np.array([3]), np.array([9]), np.array([0])), torch.ones(6, WIDTH))
    assert torch.equal(before, subject.logits(tokens))
    assert subject.config._attn_implementation != "autointerp_packed_rows"


def test_rows_pack_their_positions_one_after_the_other() -> None:
    rows = Rows(start=np.array([4, 0]), stop=np.array([6, 3]), context=np.array([0, 0]))
    assert rows.position.tolist() == [4, 5, 0, 1, 2]
    assert rows.row.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("fused", [True, False])
def test_a_row_that_overflows_harms_no_other(fused: bool) -> None:
    subject = tiny_subject("llama")
    upper = UpperLayers(subject, subject.hookpoint("layers.0"), fused=fused)
    clean = upper.clean([np.arange(40), np.arange(40)[::-1].copy()])
    rows = Rows(np.array([5, 9, 5, 20]), np.array([12, 23, 6, 21]), np.array([0, 0, 0, 1]))
    delta = torch.randn(len(rows.row), WIDTH, generator=torch.Generator().manual_seed(0))
    expected = upper.run(clean, rows, delta)
    for bad in range(4):
        broken = delta.clone()
        broken[torch.from_numpy(rows.row == bad)] = torch.inf
        others = torch.from_numpy(rows.row != bad)
        found = upper.run(clean, rows, broken)
        torch.testing.assert_close(found[others], expected[others])
        assert not torch.isfinite(found[~others]).any()
