"""Edits in plain calls of a subject: padded, step by step with a cache, and what they leave alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sae_core.attachment import attach
from sae_core.errors import CoderError, InputError, SubjectError
from sae_core.intervention.edits import Edit, EditKind, Where, intervened
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder
from tests.sae_core.edited_by_hand import LATENTS, SPECIAL, edited_logits, places, random_coder
from tests.sae_core.tiny_families import FAMILIES, VOCAB, WIDTH, tiny_family

FAMILY_KINDS = [
    (family, kind) for family in ("gpt2", "neox_parallel", "llama") for kind in ("sae", "transcoder", "crosscoder")
]


@pytest.fixture(autouse=True)
def special_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("gpt2", "neox_parallel", "llama"):
        monkeypatch.setattr(tiny_family(family), "special_ids", frozenset({SPECIAL}))


EDITS: list[Edit | None] = [
    Edit(0, EditKind.ABLATE),
    Edit(1, EditKind.SET, 2.5, Where.FIRING),
    None,
    Edit(2, EditKind.SET, 2.5, Where.FROM_FIRING),
    Edit(3, EditKind.SET, 2.5, Where.EVERYWHERE),
    Edit(4, EditKind.STEER, -3.0, Where.FIRING),
    Edit(1, EditKind.STEER, 2.0, Where.FROM_FIRING),
    Edit(2, EditKind.STEER, 2.0, Where.EVERYWHERE),
    Edit(3, EditKind.STEER, 2.0, Where.FROM_FIRING, first=5),
    Edit(0, EditKind.SET, 2.0, Where.EVERYWHERE, first=5),
]


def texts() -> list[list[int]]:
    rng = np.random.default_rng(9)
    return [[SPECIAL, *rng.integers(1, VOCAB, size).tolist()] for size in (11, 6, 9, 11, 4, 11, 8, 7, 10, 9)]


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_each_row_edited_by_hand(family: str, kind: str, side: str) -> None:
    """The padding is a token on which latents do fire: only the mask says that it is none."""
    subject = tiny_family(family)
    attached = attach(subject, random_coder(*places(family, kind), normalised=kind != "crosscoder"))
    width = max(map(len, texts()))
    ids, mask = torch.full((len(EDITS), width), 7), torch.zeros(len(EDITS), width, dtype=torch.long)
    for row, text in enumerate(texts()):
        own = slice(width - len(text), width) if side == "left" else slice(0, len(text))
        ids[row, own], mask[row, own] = torch.tensor(text), 1
    position = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad(), intervened(subject, attached, EDITS):
        logits = subject.model(input_ids=ids, attention_mask=mask, position_ids=position).logits
    moved = 0
    for row, (text, edit) in enumerate(zip(texts(), EDITS, strict=True)):
        expected = edited_logits(subject, attached, text, edit)
        torch.testing.assert_close(logits[row, mask[row] == 1], expected, atol=2e-5, rtol=1e-5)
        moved += bool((expected - edited_logits(subject, attached, text, None)).abs().max() > 0.05)
    assert moved >= 3


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_tokens_may_come_one_by_one(family: str, kind: str) -> None:
    """With the cache of the call before, rows that have fired stay fired; a call without one starts anew."""
    subject = tiny_family(family)
    attached = attach(subject, random_coder(*places(family, kind)))
    ids = torch.tensor([text[:1] + (text[1:] * 3)[:11] for text in texts()])
    expected = torch.stack(
        [edited_logits(subject, attached, row.tolist(), e) for row, e in zip(ids, EDITS, strict=True)]
    )
    with torch.no_grad(), intervened(subject, attached, EDITS):
        for steps in ([4, 1, 1, 1, 1, 4], [1] * 12, [12]):
            cache, found, at = None, [], 0
            for size in steps:
                out = subject.model(input_ids=ids[:, at : at + size], past_key_values=cache, use_cache=True)
                cache, at = out.past_key_values, at + size
                found.append(out.logits)
            torch.testing.assert_close(torch.cat(found, 1), expected, atol=2e-5, rtol=1e-5)


def test_a_cache_from_elsewhere_is_clean_and_silent() -> None:
    subject = tiny_family("llama")
    for kind in ("sae", "crosscoder"):
        attached = attach(subject, random_coder(*places("llama", kind)))
        ids = torch.tensor([texts()[0]])
        edit = Edit(1, EditKind.STEER, 2.0, Where.EVERYWHERE)
        clean = edited_logits(subject, attached, ids[0].tolist(), None)
        with torch.no_grad():
            begun = subject.model(input_ids=ids[:, :5], use_cache=True).past_key_values
            with intervened(subject, attached, [edit]):
                subject.model(input_ids=ids)
                found = subject.model(input_ids=ids[:, 5:], past_key_values=begun).logits[0]
        # by hand: the latent of the first five tokens is left alone
        whole = edited_logits(subject, attached, ids[0].tolist(), edit)
        from_five = edited_logits(subject, attached, ids[0].tolist(), edit, edited_from=5)
        torch.testing.assert_close(found, from_five[5:], atol=2e-5, rtol=1e-5)
        assert (found - whole[5:]).abs().max() > 1e-2
        assert (found - clean[5:]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["sae", "transcoder", "crosscoder"])
def test_what_is_not_edited_keeps_its_bits(kind: str) -> None:
    subject = tiny_family("llama")
    attached = attach(subject, random_coder(*places("llama", kind)))
    ids = torch.tensor([text[:1] + (text[1:] * 3)[:11] for text in texts()])
    before = subject.logits(ids)
    nothing = [Edit(i % LATENTS, EditKind.STEER, 0.0, Where.EVERYWHERE) for i in range(len(ids))]
    for edits in (nothing, [None] * len(ids)):
        with torch.no_grad(), intervened(subject, attached, edits):
            assert torch.equal(subject.model(input_ids=ids).logits, before)
    with torch.no_grad(), intervened(subject, attached, [*EDITS]):
        after = subject.model(input_ids=ids).logits
    assert torch.equal(after[2], before[2]), "the row without one"
    assert torch.equal(after[:, 0], before[:, 0]), "the BOS"
    assert not torch.equal(after[7, 1:], before[7, 1:])
    assert torch.equal(subject.logits(ids), before), "no hook is left behind"


def test_a_set_value_is_read_back() -> None:
    """Truth: a coder of orthonormal rows reads exactly what was set, where h' is encoded again; others' z stay."""
    subject = tiny_family("gpt2")
    coder = random_coder(*places("gpt2", "sae"))
    rows = torch.linalg.qr(torch.randn(WIDTH, LATENTS, generator=torch.Generator().manual_seed(2)))[0].T.contiguous()
    threshold, latent = torch.full((LATENTS,), 0.05), 1
    coder = replace(coder, encoder=AffineEncoder(rows, torch.zeros(LATENTS), JumpReLU(threshold)), decoder_weight=rows)
    attached = attach(subject, coder)
    place = attached.write[0]
    ids = torch.tensor([texts()[0], texts()[0]])
    before = coder.encode(subject.capture(ids, [place])[place].flatten(0, 1)).view(2, -1, LATENTS)
    firing = before[0, :, latent] != 0
    firing[0] = False
    assert 2 <= firing.sum() < len(firing) - 2
    found: list[torch.Tensor] = []
    with intervened(subject, attached, [Edit(latent, EditKind.SET, 4.25, Where.FIRING), Edit(latent, EditKind.ABLATE)]):
        handle = subject.base.get_submodule(place.module).register_forward_hook(
            lambda _m, _a, out: found.append(
                coder.encode((out if isinstance(out, torch.Tensor) else out[0]).flatten(0, 1))
            )
        )
        with torch.no_grad():
            subject.model(input_ids=ids)
        handle.remove()
    after = found[0].view(2, -1, LATENTS)
    torch.testing.assert_close(after[0, firing, latent], torch.full((int(firing.sum()),), 4.25), atol=1e-5, rtol=0)
    assert (after[1, firing, latent] == 0).all()
    for row in range(2):
        torch.testing.assert_close(after[row, ~firing], before[row, ~firing], atol=0, rtol=0)
        others = [i for i in range(LATENTS) if i != latent]
        torch.testing.assert_close(after[row][:, others], before[row][:, others], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_stream_between_attention_and_mlp_is_edited_for_both_who_read_it(family: str) -> None:
    subject = tiny_family(family)
    middle = subject.hookpoint("blocks.1.hook_resid_mid")
    attached = attach(subject, random_coder((str(middle),), (str(middle),)))
    parts = FAMILIES[family]
    block = subject.base.get_submodule(parts.block(1))
    norm = block.get_submodule(parts.norm_2)
    ids = torch.tensor([texts()[0]])
    edit = Edit(1, EditKind.SET, 3.0, Where.FROM_FIRING)
    stream = subject.capture(ids, [middle])[middle][0]
    z = attached.coder.encode(stream)[:, 1] * (ids[0] != SPECIAL)
    assert 0 < int(z.nonzero()[0]) < 8
    moved = stream + torch.where((z != 0).cumsum(0) > 0, 3.0 - z, 0.0)[:, None] * attached.coder.decoder_weight[1]
    with torch.no_grad():
        expected = moved + block.get_submodule(parts.mlp)(norm(moved))
        after = subject.hookpoint(parts.block(1))
        with intervened(subject, attached, [edit]):
            torch.testing.assert_close(subject.capture(ids, [after])[after][0], expected, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    subject = tiny_family("llama")
    attached = attach(subject, random_coder(*places("llama", "sae")))
    ids = torch.tensor([[0, 5, 6]])
    with pytest.raises(InputError, match="not a finite number"):
        Edit(0, EditKind.SET, float("nan"))
    with (
        pytest.raises(CoderError, match="latents 0 to 4 and an edit names 5"),
        intervened(subject, attached, [Edit(5, EditKind.ABLATE)]),
    ):
        pass
    with (
        intervened(subject, attached, [None, None]),
        pytest.raises(InputError, match="2 edits were given and the batch has 1 rows"),
    ):
        subject.model(input_ids=ids)
    with intervened(subject, attached, [None]), pytest.raises(InputError, match="with input_ids"):
        subject.model(inputs_embeds=torch.zeros(1, 3, WIDTH))
    with intervened(subject, attached, [None]), pytest.raises(SubjectError, match="one of 4 axes"):
        subject.model(input_ids=ids, attention_mask=torch.zeros(1, 1, 3, 3))
    backwards = attach(subject, random_coder(("layers.2",), ("layers.0",)))
    with (
        intervened(subject, backwards, [Edit(0, EditKind.ABLATE)]),
        pytest.raises(CoderError, match="before it has read"),
    ):
        subject.model(input_ids=ids)
