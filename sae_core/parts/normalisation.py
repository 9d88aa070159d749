"""What some coders do to each input vector before they read it, and undo on their output.

Letters: N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor


class Normalised(NamedTuple):
    """Normalised inputs, and how to bring an output back to the scale of the inputs."""

    x_ND: Tensor
    """[N, D] what the encoder reads."""
    scale_N1: Tensor | None
    """[N, 1] what an output is multiplied by; None for 1."""
    offset_N1: Tensor | None
    """[N, 1] what is added to it afterwards; None for 0."""


class Normalisation(Protocol):
    """Acts on each token by itself."""

    @property
    def undone(self) -> bool:
        """Whether the coder's output is brought back to the scale of its input; a transcoder's never is."""
        ...

    def __call__(self, x_ND: Tensor) -> Normalised:
        """[N, D] inputs, normalised."""
        ...


@dataclass(frozen=True)
class NoNormalisation:
    """Inputs as they are."""

    undone: ClassVar[bool] = False

    def __call__(self, x_ND: Tensor) -> Normalised:
        return Normalised(x_ND, None, None)


@dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / (std + eps), std with Bessel's correction; undone on the output by std and mean.

    SAELens ``normalize_activations="layer_norm"`` and OpenAI's TopK coders. The epsilon is not undone, as there.
    """

    eps: float = 1e-5
    undone: bool = True

    def __call__(self, x_ND: Tensor) -> Normalised:
        mean = x_ND.mean(-1, keepdim=True)
        centred = x_ND - mean
        std = centred.std(-1, keepdim=True)
        return Normalised(centred / (std + self.eps), *((std, mean) if self.undone else (None, None)))


@dataclass(frozen=True)
class ConstantNorm:
    """x · sqrt(D) / |x|, undone on the output (SAELens ``normalize_activations="constant_norm_rescale"``)."""

    undone: bool = True

    def __call__(self, x_ND: Tensor) -> Normalised:
        length = x_ND.norm(dim=-1, keepdim=True) / x_ND.shape[-1] ** 0.5
        return Normalised(
            x_ND / length.clamp_min(torch.finfo(length.dtype).tiny), length if self.undone else None, None
        )


@dataclass(frozen=True)
class Centring:
    """x - mean, undone on the output: what a residual stream is where writing weights are centred.

    A coder trained on TransformerLens' ``center_writing_weights`` reads this of the Hugging Face model's activations.
    """

    undone: bool = True

    def __call__(self, x_ND: Tensor) -> Normalised:
        mean = x_ND.mean(-1, keepdim=True)
        return Normalised(x_ND - mean, None, mean if self.undone else None)


@dataclass(frozen=True)
class RootMeanSquare:
    """x / sqrt(mean(x²) + eps), not undone: a norm layer without its gain, read from the stream before it.

    Gemma Scope's transcoders were trained on a subject whose norm gains are folded into the weights behind them.
    """

    undone: ClassVar[bool] = False
    eps: float = 1e-6

    def __call__(self, x_ND: Tensor) -> Normalised:
        return Normalised(x_ND * torch.rsqrt(x_ND.pow(2).mean(-1, keepdim=True) + self.eps), None, None)
