"""The least that an extraction could do: the subject up to the hookpoint, a dense encode and ``torch.topk``.

Each as fast as it can be made: no logits, inference mode, memory that is used again, and the batch and tile that are
quickest on this machine. Nothing is counted and nothing is kept.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sae_core.bench.world import CONTEXT_LENGTH, BenchWorld
from sae_core.parts.activation import TopK
from sae_core.parts.encoder import AffineEncoder

_BATCHES = {"cpu": (1_024, 2_048, 4_096, 8_192), "cuda": (8_192, 32_768, 131_072)}
_TILES = {"cpu": (256, 512, 1_024, 2_048), "cuda": (2_048, 8_192, 32_768)}
_TRIAL_TOKENS = 16_384


@dataclass(frozen=True)
class Floor:
    """How the floor is run."""

    world: BenchWorld
    batch_tokens: int
    """Tokens of a forward pass."""
    tile_tokens: int
    """Tokens that are encoded at once."""

    @torch.inference_mode()
    def run(self, contexts: range, *, selects: bool = True) -> None:
        """Do it for some contexts; without ``selects`` there is no ``torch.topk``."""
        subject, attached = self.world.subject, self.world.attached
        rows = self.batch_tokens // CONTEXT_LENGTH
        room: Tensor | None = None
        for start in range(contexts.start, contexts.stop, rows):
            batch = range(start, min(contexts.stop, start + rows))
            tokens = np.stack([self.world.corpus.context(context) for context in batch])
            captured = subject.capture(torch.from_numpy(tokens).long(), attached.read)
            hidden = attached.inputs(captured).reshape(-1, self.width)
            room = self.encode(hidden, room, selects)
        if subject.device.type == "cuda":
            torch.cuda.synchronize(subject.device)

    def encode(self, hidden: Tensor, room: Tensor | None, selects: bool) -> Tensor:
        """Encode and select [N, D]; ``room`` is memory for pre-activations, as an earlier call gave it."""
        encoder = self.world.attached.coder.encoder
        assert isinstance(encoder, AffineEncoder)
        assert isinstance(encoder.activation, TopK)
        assert encoder.bias is not None
        if room is None:
            room = torch.empty(self.tile_tokens, len(encoder.weight), dtype=hidden.dtype, device=hidden.device)
        for start in range(0, len(hidden), self.tile_tokens):
            tile = hidden[start : start + self.tile_tokens]
            pre = torch.addmm(encoder.bias, tile, encoder.weight.T, out=room[: len(tile)])
            if selects:
                pre.topk(encoder.activation.k, dim=-1, sorted=False)
        return room

    @property
    def width(self) -> int:
        return self.world.attached.coder.d_in


def fastest_floor(world: BenchWorld) -> Floor:
    """The floor with the batch and tile that take least time on this machine."""
    kind = world.subject.device.type
    contexts = range(min(world.corpus.num_contexts, _TRIAL_TOKENS // CONTEXT_LENGTH))
    best, least = Floor(world, _BATCHES[kind][0], _TILES[kind][0]), float("inf")
    for batch, tile in itertools.product(_BATCHES[kind], _TILES[kind]):
        if tile > batch:
            continue
        floor = Floor(world, batch, tile)
        for _ in range(2):  # the first one pays for the memory
            began = time.perf_counter()
            floor.run(contexts)
            took = time.perf_counter() - began
        if took < least:
            best, least = floor, took
    return best
