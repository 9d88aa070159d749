"""A sparse coder as a small set of parts: shift, affine encoder, activation function, affine decoder.

Letters: N tokens, D width of the hookpoint, L latents, K active latents of a token.
A format is a reader that fills in the parts (``sae_core.formats``), not a class of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class SparseActivations(NamedTuple):
    """The activations of N tokens that are not zero, in no particular order."""

    token: Tensor
    """[nnz] int64, row of the encoded batch."""
    latent: Tensor
    """[nnz] int64."""
    value: Tensor
    """[nnz] float, never 0."""


class Activation(Protocol):
    """What turns pre-activations into activations."""

    def dense(self, pre: Tensor) -> Tensor:
        """[N, L] pre-activations to [N, L] activations."""
        ...

    def sparse(self, pre: Tensor) -> SparseActivations:
        """The same, without the zeros."""
        ...


def _nonzero(acts: Tensor) -> SparseActivations:
    token, latent = acts.nonzero(as_tuple=True)
    return SparseActivations(token, latent, acts[token, latent])


@dataclass(frozen=True)
class ReLU:
    """max(0, pre)."""

    def dense(self, pre: Tensor) -> Tensor:
        return pre.relu()

    def sparse(self, pre: Tensor) -> SparseActivations:
        return _nonzero(pre.relu())


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of each token, then ReLU (Gao et al. 2024, "Scaling and evaluating sparse autoencoders")."""

    k: int

    def dense(self, pre: Tensor) -> Tensor:
        values, latents = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, latents, values.relu())

    def sparse(self, pre: Tensor) -> SparseActivations:
        values, latents = pre.topk(self.k, dim=-1, sorted=False)
        tokens = torch.arange(pre.shape[0], device=pre.device).unsqueeze(1).expand_as(latents)
        firing = values > 0
        return SparseActivations(tokens[firing], latents[firing], values[firing])


@dataclass(frozen=True)
class JumpReLU:
    """pre where it exceeds its latent's threshold, else 0 (Rajamanoharan et al. 2024, "Jumping ahead")."""

    threshold: Tensor
    """[L], compared strictly."""

    def dense(self, pre: Tensor) -> Tensor:
        return torch.where(pre > self.threshold, pre.relu(), torch.zeros((), dtype=pre.dtype, device=pre.device))

    def sparse(self, pre: Tensor) -> SparseActivations:
        return _nonzero(self.dense(pre))


@dataclass(frozen=True)
class SparseCoder:
    """``encode(x) = activation((x - shift) @ encoder_weight.T + encoder_bias)``; ``decode(a) = a @ decoder_weight + decoder_bias``."""

    encoder_weight: Tensor
    """[L, d_in]"""
    encoder_bias: Tensor
    """[L]"""
    decoder_weight: Tensor
    """[L, d_out], one direction a latent."""
    decoder_bias: Tensor
    """[d_out]"""
    activation: Activation
    hookpoint_in: str | None
    """Module whose output (or, with ``:input``, whose input) is encoded; None where neither file nor caller says it."""
    hookpoint_out: str | None
    """Module whose output is reconstructed."""
    format: str
    """Which reader made it."""
    fingerprint: str
    """sha256 of the stored tensors, see :func:`fingerprint_tensors`."""
    shift: Tensor | None = None
    """[d_in], subtracted from the input; None for nothing."""
    notes: tuple[str, ...] = field(default=())
    """Where each fact came from, for ``inspect``."""

    @property
    def num_latents(self) -> int:
        return self.encoder_weight.shape[0]

    @property
    def d_in(self) -> int:
        return self.encoder_weight.shape[1]

    @property
    def d_out(self) -> int:
        return self.decoder_weight.shape[1]

    @property
    def directions(self) -> Tensor:
        """[L, d_out] decoder rows: what one unit of each latent adds to the output."""
        return self.decoder_weight

    def pre_activations(self, x_ND: Tensor) -> Tensor:
        """[N, d_in] to [N, L]."""
        x = x_ND.to(self.encoder_weight.dtype)
        # (x - shift) W = x W - shift W: the shift goes into the bias once, not into every token.
        return torch.nn.functional.linear(x, self.encoder_weight, self._folded_bias)

    @cached_property
    def _folded_bias(self) -> Tensor:
        if self.shift is None:
            return self.encoder_bias
        exact = self.encoder_bias.double() - self.encoder_weight.double() @ self.shift.double()
        return exact.to(self.encoder_bias.dtype)

    @torch.no_grad()
    def encode(self, x_ND: Tensor) -> Tensor:
        """Dense activations [N, L] of the inputs [N, d_in]."""
        return self.activation.dense(self.pre_activations(x_ND))

    @torch.no_grad()
    def encode_sparse(self, x_ND: Tensor) -> SparseActivations:
        """The same activations without the zeros."""
        return self.activation.sparse(self.pre_activations(x_ND))

    @torch.no_grad()
    def decode(self, acts_NL: Tensor) -> Tensor:
        """[N, L] activations to [N, d_out] reconstructions."""
        return acts_NL.to(self.decoder_weight.dtype) @ self.decoder_weight + self.decoder_bias


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the tensors' names, dtypes, shapes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
