"""From normalised inputs to activations: one affine map and an activation function, or a matching pursuit.

Letters: N tokens, D width of all hookpoints together, L latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sae_core.parts.activation import Activation, SparseActivations, without_zeros


class Encoder(Protocol):
    """Activations of normalised inputs."""

    @property
    def weight(self) -> Tensor:
        """[L, D] the direction that each latent reads; may be a transposed view of how it is stored."""
        ...

    def dense(self, x_ND: Tensor) -> Tensor:
        """[N, D] to [N, L]."""
        ...

    def sparse(self, x_ND: Tensor) -> SparseActivations:
        """The same, without the zeros."""
        ...


@dataclass(frozen=True)
class AffineEncoder:
    """``activation(x @ weight.T + bias)``."""

    weight: Tensor
    """[L, D]"""
    bias: Tensor | None
    """[L]; None for zeros."""
    activation: Activation

    def pre_activations(self, x_ND: Tensor) -> Tensor:
        """[N, D] to [N, L]."""
        return torch.nn.functional.linear(x_ND, self.weight, self.bias)

    def dense(self, x_ND: Tensor) -> Tensor:
        return self.activation.dense(self.pre_activations(x_ND))

    def sparse(self, x_ND: Tensor) -> SparseActivations:
        return self.activation.sparse(self.pre_activations(x_ND))


@dataclass(frozen=True)
class MatchingPursuit:
    """Takes the best latent, subtracts what it explains, and looks again at what is left (SAELens ``matching_pursuit``).

    Encoder and decoder share their weights. A token is done when its residual is shorter than ``residual_threshold``,
    when a step brings no new latent (with ``stop_on_duplicate_support``), or after ``max_iterations``.
    """

    weight: Tensor
    """[L, D], the decoder's rows."""
    residual_threshold: float
    max_iterations: int
    stop_on_duplicate_support: bool

    def dense(self, x_ND: Tensor) -> Tensor:
        residual = x_ND.clone()
        acts = x_ND.new_zeros(len(x_ND), self.weight.shape[0])
        running = torch.arange(len(x_ND), device=x_ND.device)
        for _ in range(self.max_iterations):
            if not len(running):
                break
            value, best = (residual[running] @ self.weight.T).relu().max(-1)
            new = acts[running, best] == 0
            acts[running, best] += value
            residual[running] -= value.unsqueeze(1) * self.weight[best]
            goes_on = residual[running].norm(dim=-1) >= self.residual_threshold
            if self.stop_on_duplicate_support:
                goes_on &= new & (value > 0)
            running = running[goes_on]
        return acts

    def sparse(self, x_ND: Tensor) -> SparseActivations:
        return without_zeros(self.dense(x_ND))
