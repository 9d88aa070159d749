"""Activation functions: what turns the pre-activations of an affine encoder into activations.

Letters: N tokens, L latents, K active latents of a token. Each function has a dense form and the same without zeros.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sae_core.parts import compiled_selection


class SparseActivations(NamedTuple):
    """The activations of N tokens that are not zero, token after token; NaN where pre-activations were not finite."""

    token: Tensor
    """[nnz] int64, row of the encoded batch, ascending."""
    latent: Tensor
    """[nnz] int64."""
    value: Tensor
    """[nnz] float, never 0."""


class Activation(Protocol):
    """What turns pre-activations into activations."""

    def dense(self, pre_NL: Tensor) -> Tensor:
        """[N, L] pre-activations to [N, L] activations."""
        ...

    def sparse(self, pre_NL: Tensor) -> SparseActivations:
        """The same, without the zeros."""
        ...


def without_zeros(acts_NL: Tensor) -> SparseActivations:
    """The entries of dense activations that are not zero."""
    token, latent = acts_NL.nonzero(as_tuple=True)
    return SparseActivations(token, latent, acts_NL[token, latent])


def _selected(latents_NK: Tensor, values_NK: Tensor) -> SparseActivations:
    tokens = torch.arange(latents_NK.shape[0], device=latents_NK.device).unsqueeze(1).expand_as(latents_NK)
    firing = values_NK != 0
    return SparseActivations(tokens[firing], latents_NK[firing], values_NK[firing])


class Selection(ABC):
    """Keeps some latents of each token: a subclass says which, and both forms follow."""

    @abstractmethod
    def select(self, pre_NL: Tensor) -> tuple[Tensor, Tensor]:
        """``(latents, values)``, each [N, K]; no latent twice in a row."""

    def dense(self, pre_NL: Tensor) -> Tensor:
        """[N, L] pre-activations to [N, L] activations."""
        latents, values = self.select(pre_NL)
        return torch.zeros_like(pre_NL).scatter_(-1, latents, values)

    def sparse(self, pre_NL: Tensor) -> SparseActivations:
        """The same, without the zeros."""
        return _selected(*self.select(pre_NL))


@dataclass(frozen=True)
class ReLU:
    """max(0, pre)."""

    def dense(self, pre_NL: Tensor) -> Tensor:
        return pre_NL.relu()

    def sparse(self, pre_NL: Tensor) -> SparseActivations:
        if compiled_selection.applies_to(pre_NL):
            return SparseActivations(*compiled_selection.above(pre_NL, torch.zeros(1), rectify=True))
        return without_zeros(pre_NL.relu())


@dataclass(frozen=True)
class TopK(Selection):
    """The k largest pre-activations of each token (Gao et al. 2024, "Scaling and evaluating sparse autoencoders")."""

    k: int
    rectify: bool = True
    """Whether a ReLU follows; without it the k largest may be negative."""

    def select(self, pre_NL: Tensor) -> tuple[Tensor, Tensor]:
        values, latents = pre_NL.topk(self.k, dim=-1, sorted=False)
        return latents, values.relu() if self.rectify else values

    def sparse(self, pre_NL: Tensor) -> SparseActivations:
        if compiled_selection.applies_to(pre_NL):
            return SparseActivations(*compiled_selection.top_k(pre_NL, self.k, self.rectify))
        return super().sparse(pre_NL)


@dataclass(frozen=True)
class AbsTopK(Selection):
    """The k pre-activations of each token that are farthest from zero, signs kept."""

    k: int

    def select(self, pre_NL: Tensor) -> tuple[Tensor, Tensor]:
        latents = pre_NL.abs().topk(self.k, dim=-1, sorted=False).indices
        return latents, pre_NL.gather(-1, latents)


@dataclass(frozen=True)
class GroupMax(Selection):
    """The largest of each of k runs of L/k neighbouring latents, then ReLU (sparsify's ``groupmax``)."""

    k: int

    def select(self, pre_NL: Tensor) -> tuple[Tensor, Tensor]:
        values, place = pre_NL.reshape(len(pre_NL), self.k, pre_NL.shape[-1] // self.k).max(-1)
        start = torch.arange(self.k, device=pre_NL.device) * (pre_NL.shape[-1] // self.k)
        return place + start, values.relu()


@dataclass(frozen=True)
class JumpReLU:
    """pre where it exceeds its latent's threshold, else 0 (Rajamanoharan et al. 2024, "Jumping ahead").

    BatchTopK coders infer with it too: training leaves one threshold for all latents (Bussmann et al. 2024).
    """

    threshold: Tensor
    """[L] or [1], compared strictly."""
    rectify: bool = True
    """Whether a negative pre-activation above a negative threshold still gives 0."""

    def dense(self, pre_NL: Tensor) -> Tensor:
        kept = pre_NL.relu() if self.rectify else pre_NL
        # asked this way round, NaN is kept: whoever counts activations must see it
        return torch.where(pre_NL <= self.threshold, torch.zeros((), dtype=pre_NL.dtype, device=pre_NL.device), kept)

    def sparse(self, pre_NL: Tensor) -> SparseActivations:
        if compiled_selection.applies_to(pre_NL) and self.threshold.dtype == pre_NL.dtype:
            return SparseActivations(*compiled_selection.above(pre_NL, self.threshold, self.rectify))
        return without_zeros(self.dense(pre_NL))


@dataclass(frozen=True)
class Gated:
    """A gate says whether a latent fires, a magnitude how much (Rajamanoharan et al. 2024, "Improving dictionary learning").

    Both read the same pre-activations, which therefore come without a bias.
    """

    gate_bias: Tensor
    """[L]"""
    log_scale: Tensor
    """[L] r_mag: the magnitude's weights are the gate's, times its exponential."""
    magnitude_bias: Tensor
    """[L]"""

    def dense(self, pre_NL: Tensor) -> Tensor:
        magnitude = (pre_NL * self.log_scale.exp() + self.magnitude_bias).relu()
        return magnitude * (pre_NL + self.gate_bias > 0)

    def sparse(self, pre_NL: Tensor) -> SparseActivations:
        return without_zeros(self.dense(pre_NL))
