"""A sparse coder as a small set of parts: normalisation, shift, encoder, decoder, skip.

Letters: N tokens, H hookpoints, D width of one hookpoint, L latents.
A format is a reader that fills in the parts (``sae_core.formats``), not a class of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sae_core.errors import CoderError
from sae_core.parts.activation import SparseActivations
from sae_core.parts.encoder import Encoder
from sae_core.parts.normalisation import NoNormalisation, Normalisation


class Fact(NamedTuple):
    """One thing that is known about a coder, and where it was read."""

    name: str
    value: str
    origin: str
    """"cfg.json: k", "the folder's name", "given", ..."""


@dataclass(frozen=True)
class SparseCoder:
    """Reads activations at some hookpoints, gives activations of latents, and writes what they stand for at others.

    With ``u = normalise(x) - shift``: ``encode(x) = encoder(u)`` and
    ``decode(a, x) = undo(a @ decoder_weight + decoder_bias) + x @ skip.T``, where ``undo`` is the normalisation's.
    The widths of several hookpoints lie one after the other.
    """

    encoder: Encoder
    decoder_weight: Tensor
    """[L, H_out * d_out], one direction a latent; may be a transposed view of how it is stored."""
    decoder_bias: Tensor
    """[H_out * d_out]"""
    hookpoints_in: tuple[str, ...]
    """Modules whose output (or, with ``:input``, whose input) is encoded; empty where neither file nor caller says it."""
    hookpoints_out: tuple[str, ...]
    """Modules whose output (input) is reconstructed."""
    format: str
    """Which reader made it."""
    architecture: str
    """What the format calls this kind of coder."""
    fingerprint: str
    """sha256 of the stored weights and of everything that decides what they compute."""
    shift: Tensor | None = None
    """[H_in * d_in], subtracted from the normalised input; None for nothing."""
    normalisation: Normalisation = field(default_factory=NoNormalisation)
    skip: Tensor | None = None
    """[d_out, d_in] of a skip connection from the input to the output; None for none."""
    num_hooks_in: int = 1
    """H_in"""
    num_hooks_out: int = 1
    """H_out"""
    value_biases_folded: bool = False
    """Whether the input is an attention's ``hook_z`` without the values' bias (TransformerLens' ``fold_value_biases``)."""
    decodes_partly: bool = False
    """Whether other coders' latents add to the same outputs, so that its own output reconstructs nothing by itself."""
    num_subjects: int = 1
    """Models whose activations it reads: more than one for crosscoders that compare models."""
    facts: tuple[Fact, ...] = ()
    """What is known about it and where each fact came from."""

    @property
    def num_latents(self) -> int:
        return self.decoder_weight.shape[0]

    @property
    def d_in(self) -> int:
        """Width of one input hookpoint."""
        return self.encoder.weight.shape[1] // self.num_hooks_in

    @property
    def d_out(self) -> int:
        """Width of one output hookpoint."""
        return self.decoder_weight.shape[1] // self.num_hooks_out

    @property
    def directions(self) -> Tensor:
        """[L, H_out * d_out] decoder rows: what one unit of each latent adds to the output, where nothing is normalised."""
        return self.decoder_weight

    @property
    def transcodes(self) -> bool:
        """Whether it writes elsewhere than it reads."""
        return self.hookpoints_in != self.hookpoints_out

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Dense activations [N, L] of the inputs [N, d_in], or [N, H_in, d_in]."""
        return self.encoder.dense(self._read(x))

    @torch.no_grad()
    def encode_sparse(self, x: Tensor) -> SparseActivations:
        """The same activations without the zeros."""
        return self.encoder.sparse(self._read(x))

    @torch.no_grad()
    def decode(self, acts_NL: Tensor, x: Tensor | None = None) -> Tensor:
        """[N, L] activations to reconstructions [N, d_out], or [N, H_out, d_out] where there are several hookpoints.

        ``x``, the inputs as given to :meth:`encode`, is needed where the output depends on them beyond the activations
        (a normalisation that is undone, a skip connection). Raises ValueError where it is needed and not given.
        """
        if x is None and self.output_needs_input:
            raise ValueError(
                f"a {self.format} {self.architecture} coder's output depends on its input (skip connection or "
                "normalisation): give decode(acts, x)."
            )
        out = acts_NL.to(self.decoder_weight.dtype) @ self.decoder_weight + self.decoder_bias
        if x is not None:
            flat = self._flat(x)
            _, scale, offset = self.normalisation(flat)
            out = out if scale is None else out * scale
            out = out if offset is None else out + offset
            out = out if self.skip is None else out + flat @ self.skip.T
        return out if self.num_hooks_out == 1 else out.view(len(out), self.num_hooks_out, self.d_out)

    @property
    def output_needs_input(self) -> bool:
        """Whether :meth:`decode` must be given the inputs."""
        return self.skip is not None or self.normalisation.undone

    @torch.no_grad()
    def output_scale(self, x: Tensor) -> Tensor | None:
        """[N] what a latent's direction is multiplied by at each of the inputs; None where that is always 1."""
        scale = self.normalisation(self._flat(x)).scale_N1
        return None if scale is None else scale.squeeze(-1)

    def _flat(self, x: Tensor) -> Tensor:
        """[N, H_in * d_in] in the coder's dtype; heads or hookpoints may come as an axis of their own."""
        flat = x.reshape(len(x), math.prod(x.shape[1:])).to(self.encoder.weight.dtype)
        if flat.shape[1] != self.encoder.weight.shape[1]:
            hooks = f"{self.num_hooks_in} hookpoints x " if self.num_hooks_in > 1 else ""
            raise CoderError(f"the coder reads {hooks}{self.d_in} dimensions, and the input has {list(x.shape[1:])}.")
        return flat

    def _read(self, x: Tensor) -> Tensor:
        normalised = self.normalisation(self._flat(x)).x_ND
        return normalised if self.shift is None else normalised - self.shift


def fingerprint(weights_digest: str, coder: SparseCoder, folded: tuple[str, ...] = ()) -> str:
    """sha256 of the stored weights' digest and of all that decides what the parts compute with them.

    ``folded`` names what was multiplied into the weights as they were read, with its numbers.
    """

    def numbers(part: object) -> dict[str, object]:
        found: dict[str, object] = {"kind": type(part).__name__}
        for entry in fields(part) if is_dataclass(part) else ():
            value = getattr(part, entry.name)
            if isinstance(value, (bool, int, float, str)):
                found[entry.name] = value
        return found

    parts: list[object] = [coder.encoder, coder.normalisation]
    if hasattr(coder.encoder, "activation"):
        parts.append(coder.encoder.activation)
    behaviour = {
        "weights": weights_digest,
        "parts": [numbers(part) for part in parts],
        "shift": coder.shift is not None,
        "skip": coder.skip is not None,
        "hooks": [coder.num_hooks_in, coder.num_hooks_out],
        "value biases folded": coder.value_biases_folded,
        "folded": list(folded),
    }
    return hashlib.sha256(json.dumps(behaviour, sort_keys=True).encode()).hexdigest()
