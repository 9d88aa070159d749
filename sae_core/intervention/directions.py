"""The random directions that an intervention on a latent is compared with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_core.attachment import side_by_side
from sae_core.errors import CorpusError
from sae_core.hashing import seed_for
from sae_core.hookpoints import Hookpoint
from sae_core.intervention.evidence import ControlKind
from sae_core.subject import SubjectModel

ContextTokens = Callable[[int], NDArray[np.integer[Any]]]
"""Ordinal of a context -> its token ids, the BOS included."""


class Coder(Protocol):
    """What interventions need of a sparse coder; :class:`sae_core.coder.SparseCoder` has it."""

    @property
    def hookpoints_in(self) -> tuple[str, ...]: ...
    @property
    def hookpoints_out(self) -> tuple[str, ...]: ...
    @property
    def directions(self) -> Tensor:
        """[L, D] what one unit of each latent adds to the output; D is the width of all output hookpoints together."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """[N, L] dense activations."""
        ...

    def output_scale(self, x: Tensor) -> Tensor | None:
        """[N] what directions are multiplied by at each input; None where that is always 1."""
        ...


@dataclass(frozen=True)
class ControlDirections:
    """Directions of length 1 that stand for "any push of this size"."""

    vectors: Tensor
    """[R, D] float32, on the subject's device."""
    kinds: tuple[ControlKind, ...]
    """R kinds."""
    activation_norm: float
    """Mean length of the activations that were looked at: the scale of the hookpoint."""


@torch.inference_mode()
def draw_control_directions(
    subject: SubjectModel,
    hookpoints: Sequence[Hookpoint],
    context_tokens: ContextTokens,
    num_contexts: int,
    count: int,
    seed: int,
) -> ControlDirections:
    """``count`` control directions, the first half isotropic, the rest typical; the same for every latent of a run.

    They depend on nothing but the seed, the subject and the corpus, so that all chunks of a run meet the same ones and
    the variance over directions means something (METHODS 5).

    Raises:
        CorpusError: the corpus has no two different tokens to compare.
    """
    rng = np.random.default_rng(seed_for(seed, "control directions", *map(str, hookpoints)))
    width = sum(subject.widths(hookpoints).values())
    num_typical = count // 2
    samples: list[Tensor] = []
    for _ in range(2 * max(num_typical, 4)):
        tokens = np.asarray(context_tokens(int(rng.integers(num_contexts))))
        counts = np.flatnonzero(~np.isin(tokens, list(subject.special_ids)))
        counts = counts[counts > 0]  # the first token of a context is an attention sink, typical of nothing
        if len(counts) == 0:
            continue
        at = int(counts[rng.integers(len(counts))])
        batch = torch.from_numpy(tokens[: at + 1].astype(np.int64))[None]
        samples.append(side_by_side(hookpoints, subject.capture(batch, hookpoints))[0, -1].float())
    if len(samples) < 2:
        raise CorpusError(
            f"The corpus has {len(samples)} tokens to draw typical directions from; give a corpus of more tokens."
        )
    isotropic = torch.from_numpy(rng.standard_normal((count - num_typical, width))).float().to(subject.device)
    # Equal tokens at a shallow hookpoint have equal activations: such pairs are passed over.
    pairs = [a - b for a, b in itertools.pairwise(samples) if bool((a != b).any())]
    if not pairs:
        raise CorpusError(
            "All random tokens of the corpus have equal activations; give a corpus of more kinds of tokens."
        )
    typical = [pairs[(2 * r) % len(pairs)] for r in range(num_typical)]
    vectors = torch.cat([isotropic, torch.stack(typical)]) if typical else isotropic
    norms = vectors.norm(dim=-1, keepdim=True)
    return ControlDirections(
        vectors=vectors / norms,
        kinds=(ControlKind.ISOTROPIC,) * (count - num_typical) + (ControlKind.TYPICAL,) * num_typical,
        activation_norm=float(torch.stack(samples).norm(dim=-1).mean()),
    )
