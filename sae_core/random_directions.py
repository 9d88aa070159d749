"""A fake coder of random directions that fires as often as a real one does: the floor of every score (METHODS 6).

Each direction is isotropic, has the norm of a real latent's decoder row, and a threshold set so that on a sample of
the corpus it fires on as many tokens as that latent. A label that scores no better than these says nothing about
the coder. Heap, Lawson, Farnik & Aitchison 2025, "Sparse autoencoders can interpret randomly initialized
transformers", is why one has to look.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sae_core.attachment import AttachedCoder
from sae_core.batches import context_batches, padded
from sae_core.coder import SparseCoder, fingerprint
from sae_core.errors import InputError
from sae_core.hashing import seed_for
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder
from sae_core.subject import SubjectModel
from sae_core.tokens import TokenCorpus

_SAMPLE_CONTEXTS = 128
"""Contexts, spread evenly over those that are given, on which thresholds are set."""


@torch.no_grad()
def fit_directions(
    subject: SubjectModel,
    attached: AttachedCoder,
    corpus: TokenCorpus,
    contexts: range,
    *,
    num_directions: int,
    seed: int,
    batch_tokens: int = 8192,
) -> SparseCoder:
    """A JumpReLU coder of ``num_directions`` latents on ``attached``'s hookpoint, its thresholds set on some ``contexts``.

    The latents that lend norm and firing rate are drawn from those that fire on the sample. Where none does there is
    no rate to match: norms are then those of any latents and no direction ever fires (thresholds of +infinity), so that
    the control of a dead coder is as dead as the coder.
    """
    ordinals = np.unique(np.linspace(contexts.start, contexts.stop - 1, _SAMPLE_CONTEXTS).astype(np.int64))
    special = np.asarray(sorted(subject.special_ids))
    coder = attached.coder
    hidden: list[torch.Tensor] = []
    fired = torch.zeros(coder.num_latents, dtype=torch.long, device=subject.device)
    for rows in context_batches(corpus, ordinals, batch_tokens):
        tokens = padded([corpus.context(int(row)) for row in rows])
        counts = torch.from_numpy((tokens >= 0) & ~np.isin(tokens, special)).to(subject.device)
        ids = torch.from_numpy(np.maximum(tokens, 0)).long().to(subject.device)
        body = attached.inputs(subject.capture(ids, attached.read))[counts]
        fired += (coder.encode(body) != 0).sum(0)
        hidden.append(body.float())
    sample = torch.cat(hidden)
    alive = torch.nonzero(fired).squeeze(1).cpu().numpy()
    silent = not len(alive)
    if silent:
        alive = np.arange(coder.num_latents)
    generator = np.random.default_rng(seed_for(seed, "random directions"))
    lenders = torch.from_numpy(generator.choice(alive, num_directions, replace=len(alive) < num_directions))
    lenders = lenders.to(subject.device)
    drawn = torch.from_numpy(generator.standard_normal((num_directions, sample.shape[1]))).to(
        subject.device, torch.float32
    )
    unit = drawn / drawn.norm(dim=1, keepdim=True)
    mean = sample.mean(0)
    projections = (sample - mean) @ unit.T  # [N, num_directions]
    wanted = fired[lenders].clamp(min=1, max=len(sample) - 1)
    ordered = projections.sort(dim=0, descending=True).values
    index = torch.arange(num_directions, device=subject.device)
    threshold = (ordered[wanted - 1, index] + ordered[wanted, index]) / 2
    if silent:
        threshold = torch.full_like(threshold, float("inf"))
    norms = coder.directions[lenders].float().norm(dim=1, keepdim=True)
    width_out = coder.directions.shape[1]
    if not coder.transcodes and width_out == sample.shape[1]:
        decoder = unit * norms
    else:
        out = torch.from_numpy(generator.standard_normal((num_directions, width_out))).to(unit)
        decoder = out / out.norm(dim=1, keepdim=True) * norms
    tensors = {
        "encoder_weight": unit,
        "encoder_bias": -(unit @ mean),
        "decoder_weight": decoder,
        "decoder_bias": torch.zeros(width_out, device=unit.device),
        "threshold": threshold.clamp(min=0.0),
    }
    return _coder(tensors, coder.hookpoints_in, coder.hookpoints_out)


def save_directions(path: Path, coder: SparseCoder) -> None:
    """Write the fake coder as safetensors, under a temporary name first."""
    if not isinstance(coder.encoder, AffineEncoder) or not isinstance(coder.encoder.activation, JumpReLU):
        raise InputError("random directions are a JumpReLU coder; this is not one.")
    tensors = {
        "encoder_weight": coder.encoder.weight,
        "encoder_bias": coder.encoder.bias,
        "decoder_weight": coder.decoder_weight,
        "decoder_bias": coder.decoder_bias,
        "threshold": coder.encoder.activation.threshold,
    }
    temporary = path.with_suffix(".tmp")
    save_file(
        {name: tensor.cpu().contiguous() for name, tensor in tensors.items() if tensor is not None},
        temporary,
        {"hookpoints_in": "\n".join(coder.hookpoints_in), "hookpoints_out": "\n".join(coder.hookpoints_out)},
    )
    temporary.replace(path)


def load_directions(path: Path, *, device: str | torch.device = "cpu") -> SparseCoder:
    """Read what :func:`save_directions` wrote."""
    with safe_open(path, framework="pt", device=str(device)) as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    into, out = (tuple(metadata[key].split("\n")) for key in ("hookpoints_in", "hookpoints_out"))
    return _coder(tensors, into, out)


def _coder(tensors: dict[str, torch.Tensor], into: tuple[str, ...], out: tuple[str, ...]) -> SparseCoder:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}|{tuple(tensors[name].shape)}|".encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    coder = SparseCoder(
        encoder=AffineEncoder(tensors["encoder_weight"], tensors["encoder_bias"], JumpReLU(tensors["threshold"])),
        decoder_weight=tensors["decoder_weight"],
        decoder_bias=tensors["decoder_bias"],
        hookpoints_in=into,
        hookpoints_out=out,
        format="random directions",
        architecture="jumprelu",
        fingerprint="",
        num_hooks_in=len(into),
        num_hooks_out=len(out),
    )
    return replace(coder, fingerprint=fingerprint(digest.hexdigest(), coder))
