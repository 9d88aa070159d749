"""A random coder on the tiny families, and what an edit of one of its latents does, by hooks written out by hand."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from sae_core.attachment import AttachedCoder
from sae_core.coder import SparseCoder
from sae_core.intervention.edits import Edit
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder
from sae_core.parts.normalisation import LayerNorm, NoNormalisation
from sae_core.subject import SubjectModel
from tests.sae_core.tiny_families import FAMILIES, WIDTH

LATENTS = 5
SPECIAL = 0
"""The token that a caller makes the subject's only special one."""


def random_coder(
    into: tuple[str, ...], out: tuple[str, ...], *, normalised: bool = False, std: float = 0.3
) -> SparseCoder:
    generator = torch.Generator().manual_seed(11)
    weight = torch.randn(LATENTS, WIDTH * len(into), generator=generator)
    return SparseCoder(
        encoder=AffineEncoder(weight, torch.zeros(LATENTS), JumpReLU(torch.full((LATENTS,), 1.0))),
        decoder_weight=torch.randn(LATENTS, WIDTH * len(out), generator=generator) * std,
        decoder_bias=torch.randn(WIDTH * len(out), generator=generator),
        normalisation=LayerNorm() if normalised else NoNormalisation(),
        hookpoints_in=into,
        hookpoints_out=out,
        num_hooks_in=len(into),
        num_hooks_out=len(out),
        format="test",
        architecture="test",
        fingerprint="test",
    )


def places(family: str, kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    parts = FAMILIES[family]
    if kind == "transcoder":
        return (parts.block(1, parts.mlp) + ":input",), (parts.block(1, parts.mlp),)
    blocks = ("0", "1") if kind == "crosscoder" else ("1",)
    names = tuple(parts.block(int(block)) for block in blocks)
    return names, names


def edited_logits(
    subject: SubjectModel,
    attached: AttachedCoder,
    tokens: list[int],
    edit: Edit | None,
    edited_until: int | None = None,
    edited_from: int = 0,
) -> torch.Tensor:
    """[T, V] of the whole text by one plain pass (two for the clean values of a crosscoder), hooks on the modules.

    ``edited_from`` and ``edited_until`` bound the positions that are edited.
    """
    ids = torch.tensor(tokens)[None]
    if edit is None:
        with torch.no_grad():
            return subject.model(input_ids=ids).logits[0]
    coder = attached.coder
    assert isinstance(coder.encoder, AffineEncoder)
    clean: dict[str, torch.Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for point in {*attached.read, *attached.write}:
            module = subject.base.get_submodule(point.module)
            if point.io == "input":

                def before(_m: object, args: tuple[torch.Tensor, ...], name: str = str(point)) -> None:
                    clean[name] = args[0][0].clone()

                stack.callback(module.register_forward_pre_hook(before).remove)
            else:

                def after(_m: object, _a: object, out: object, name: str = str(point)) -> None:
                    clean[name] = (out if isinstance(out, torch.Tensor) else out[0])[0].clone()

                stack.callback(module.register_forward_hook(after).remove)
        subject.model(input_ids=ids)
    x = torch.cat([clean[str(point)] for point in attached.read], dim=1)
    scale = torch.ones(len(tokens))
    if isinstance(coder.normalisation, LayerNorm):
        centred = x - x.mean(1, keepdim=True)
        scale = centred.pow(2).sum(1).div(x.shape[1] - 1).sqrt()
        x = centred / (scale[:, None] + 1e-5)
    pre = x @ coder.encoder.weight[edit.latent]
    z = torch.where(pre > 1.0, pre, torch.zeros(()))
    ordinary = torch.tensor([t != SPECIAL and place >= edit.first for place, t in enumerate(tokens)])
    z = torch.where(ordinary, z, torch.zeros(()))
    amount = {"ablate": -z * scale, "set": (edit.value - z) * scale, "steer": torch.full_like(z, edit.value)}[edit.kind]
    since = torch.cumsum(z != 0, 0) > 0
    where = {"firing": z != 0, "from_firing": since & ordinary, "everywhere": ordinary}[edit.where]
    if edited_until is not None:
        where = where & (torch.arange(len(tokens)) < edited_until)
    where = where & (torch.arange(len(tokens)) >= edited_from)
    delta = torch.where(where, amount, torch.zeros(()))[:, None] * coder.decoder_weight[edit.latent]
    with ExitStack() as stack, torch.no_grad():
        for number, point in enumerate(attached.write):

            def change(
                _m: object,
                _a: object,
                out: object,
                part: torch.Tensor = delta[:, number * WIDTH : (number + 1) * WIDTH],
                name: str = str(point),
            ) -> object:
                whole = (out if isinstance(out, torch.Tensor) else out[0]).clone()
                if len(attached.write) > 1 and attached.read == attached.write:
                    moved = delta.abs().sum(1) > 0
                    whole[0, moved] = clean[name][moved] + part[moved]
                else:
                    whole[0] += part
                return whole if isinstance(out, torch.Tensor) else (whole, *out[1:])

            stack.callback(subject.base.get_submodule(point.module).register_forward_hook(change).remove)
        return subject.model(input_ids=ids).logits[0]
