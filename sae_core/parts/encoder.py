"""From normalised inputs to activations: one affine map and an activation function, or a matching pursuit.

Letters: N tokens, D width of all hookpoints together, L latents.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sae_core.parts.activation import Activation, SparseActivations, without_zeros

_TILE_BYTES = 256 << 20
"""Pre-activations that are there at once."""
_LEAST_TILE = 64
"""Tokens below which a matrix product no longer pays."""
_KEPT = threading.local()


def _scratch(x_ND: Tensor, num_latents: int) -> Tensor | None:
    """[N, L] uninitialised, the same memory at every call of a thread; None on a GPU, whose allocator keeps memory itself.

    Fresh memory costs a page fault for every 4 KiB that are written, which is as much time as the matrix product takes.
    """
    if x_ND.device.type != "cpu":
        return None
    kept: Tensor | None = getattr(_KEPT, "tensor", None)
    size = len(x_ND) * num_latents
    if kept is None or kept.dtype != x_ND.dtype or kept.numel() < size:
        with torch.inference_mode(False):  # or it could not be written to outside of that mode
            kept = _KEPT.tensor = torch.empty(size, dtype=x_ND.dtype)
    return kept[:size].view(len(x_ND), num_latents)


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
        """A tile of tokens after the other, so that no more than a tile's pre-activations are ever there."""
        rows = max(_LEAST_TILE, _TILE_BYTES // (x_ND.element_size() * self.weight.shape[0]))
        tiles = []
        for start in range(0, max(1, len(x_ND)), rows):
            tile = x_ND[start : start + rows]
            found = self.activation.sparse(self._pre_activations_in(_scratch(tile, self.weight.shape[0]), tile))
            tiles.append(found._replace(token=found.token + start) if start else found)
        if len(tiles) == 1:
            return tiles[0]
        return SparseActivations(*(torch.cat(parts) for parts in zip(*tiles, strict=True)))

    def _pre_activations_in(self, room_NL: Tensor | None, x_ND: Tensor) -> Tensor:
        if room_NL is None:
            return self.pre_activations(x_ND)
        if self.bias is None:
            return torch.mm(x_ND, self.weight.T, out=room_NL)
        return torch.addmm(self.bias, x_ND, self.weight.T, out=room_NL)


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
