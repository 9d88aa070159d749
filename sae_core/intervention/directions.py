"""The random directions that an intervention on a latent is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_core.attachment import side_by_side
from sae_core.errors import CorpusError, InputError
from sae_core.hashing import seed_for
from sae_core.hookpoints import Hookpoint
from sae_core.intervention.evidence import ControlKind
from sae_core.subject import SubjectModel

_AT_A_TIME = 8
"""Contexts that are run together for typical directions."""
_ROUNDS = 8
"""Times that further tokens are drawn where typical directions are still missing."""
_ALIKE = 1 - 1e-6
"""Two directions with a cosine (of any sign) above this are one."""

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
    """``count`` control directions, the first half isotropic, the rest typical; the same for every chunk of a run.

    They depend on nothing but the seed, the subject and the corpus, so that all chunks of a run meet the same ones and
    the variance over directions means something (METHODS 5). No two are alike: a corpus of very few kinds of tokens
    gives fewer typical ones, and :func:`deal_directions` refuses where a latent would have to get one twice.

    Raises:
        CorpusError: the corpus has no two different tokens to compare.
    """
    rng = np.random.default_rng(seed_for(seed, "control directions", *map(str, hookpoints)))
    width = sum(subject.widths(hookpoints).values())
    num_typical = count // 2
    found = _Typical(subject, hookpoints, context_tokens, num_contexts, rng)
    found.draw(2 * max(num_typical, 4))
    isotropic = torch.from_numpy(rng.standard_normal((count - num_typical, width))).float().to(subject.device)
    for _ in range(_ROUNDS):
        missing = num_typical - len(found.directions)
        if missing > 0:
            found.draw(2 * max(missing, 4))
    if len(found.samples) < 2:
        raise CorpusError(
            f"The corpus has {len(found.samples)} tokens to draw typical directions from; give a corpus of more tokens."
        )
    if not found.directions:
        raise CorpusError(
            "All random tokens of the corpus have equal activations; give a corpus of more kinds of tokens."
        )
    typical = found.directions[:num_typical]
    return ControlDirections(
        vectors=torch.stack([*(isotropic / isotropic.norm(dim=-1, keepdim=True)), *typical]),
        kinds=(ControlKind.ISOTROPIC,) * len(isotropic) + (ControlKind.TYPICAL,) * len(typical),
        activation_norm=float(torch.stack(found.samples).norm(dim=-1).mean()),
    )


class _Typical:
    """Differences of the activations at two random tokens, as they are drawn."""

    def __init__(
        self,
        subject: SubjectModel,
        hookpoints: Sequence[Hookpoint],
        context_tokens: ContextTokens,
        num_contexts: int,
        rng: np.random.Generator,
    ) -> None:
        self.subject = subject
        self.hookpoints = hookpoints
        self.context_tokens = context_tokens
        self.num_contexts = num_contexts
        self.rng = rng
        self.seen: set[tuple[int, int]] = set()
        """Contexts and positions drawn so far."""
        self.samples: list[Tensor] = []
        """[D] activations at them."""
        self.directions: list[Tensor] = []
        """[D] of length 1, no two alike."""

    def draw(self, tries: int) -> None:
        """Look at so many random tokens, each with the next one making a direction."""
        texts: list[NDArray[np.int64]] = []
        for _ in range(tries):
            ordinal = int(self.rng.integers(self.num_contexts))
            tokens = np.asarray(self.context_tokens(ordinal))
            counts = np.flatnonzero(~np.isin(tokens, list(self.subject.special_ids)))
            counts = counts[counts > 0]  # the first token of a context is an attention sink, typical of nothing
            if not len(counts):
                continue
            position = int(counts[self.rng.integers(len(counts))])
            # A token drawn again differs from itself by the rounding of another batch, a direction of noise.
            if (ordinal, position) not in self.seen:
                self.seen.add((ordinal, position))
                texts.append(tokens[: position + 1].astype(np.int64))
        if not texts:
            return
        samples = _last_activations(self.subject, self.hookpoints, texts)
        self.samples += samples
        for a, b in zip(samples[::2], samples[1::2], strict=False):
            self._add(a - b)

    def _add(self, difference: Tensor) -> None:
        """Equal tokens at a shallow hookpoint have equal activations, and two pairs of the same tokens one difference."""
        length = float(difference.norm())
        if length == 0:
            return
        unit = difference / length
        if all(abs(float(unit @ other)) < _ALIKE for other in self.directions):
            self.directions.append(unit)


def _last_activations(
    subject: SubjectModel, hookpoints: Sequence[Hookpoint], texts: Sequence[NDArray[np.int64]]
) -> list[Tensor]:
    """[D] float32, the activation at the last token of each text; texts of like length run together."""
    found: dict[int, Tensor] = {}
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for begin in range(0, len(order), _AT_A_TIME):
        part = order[begin : begin + _AT_A_TIME]
        batch = np.zeros((len(part), len(texts[part[-1]])), dtype=np.int64)
        for row, i in zip(batch, part, strict=True):
            row[: len(texts[i])] = texts[i]
        captured = side_by_side(hookpoints, subject.capture(torch.from_numpy(batch), hookpoints))
        for place, i in enumerate(part):
            found[i] = captured[place, len(texts[i]) - 1].float()
    return [found[i] for i in range(len(texts))]


def kinds_dealt(count: int) -> tuple[ControlKind, ...]:
    """The kinds of ``count`` directions: isotropic ones first, half of each."""
    return (ControlKind.ISOTROPIC,) * (count - count // 2) + (ControlKind.TYPICAL,) * (count // 2)


def deal_directions(
    latents: NDArray[np.integer[Any]], kinds: Sequence[ControlKind], count: int, seed: int
) -> NDArray[np.int32]:
    """[F, R] which directions of a pool of ``kinds`` each latent is compared with, in the order of :func:`kinds_dealt`.

    By the seed and the latent alone, so that chunks and company do not matter. Were they the same for all latents, the
    error of these few would be in every latent alike, and no number of latents would take it out of their median.

    Raises:
        InputError: the pool has too few of a kind.
    """
    wanted = {kind: kinds_dealt(count).count(kind) for kind in ControlKind}
    places = {kind: np.flatnonzero(np.array(kinds) == kind) for kind in wanted}
    if any(len(places[kind]) < number for kind, number in wanted.items()):
        isotropic, typical = (len(places[kind]) for kind in (ControlKind.ISOTROPIC, ControlKind.TYPICAL))
        raise InputError(
            f"{count} control directions for each latent, half of each kind, were asked for, of a pool of {len(kinds)} "
            f"({isotropic} isotropic, {typical} typical); ask for at most {2 * min(isotropic, typical)}, or give a larger "
            "pool and a corpus of more kinds of tokens."
        )
    dealt = np.empty((len(latents), count), dtype=np.int32)
    for row, latent in zip(dealt, latents.tolist(), strict=True):
        rng = np.random.default_rng(seed_for(seed, "control directions of a latent", latent))
        row[:] = np.concatenate([rng.choice(places[kind], number, replace=False) for kind, number in wanted.items()])
    return dealt
