"""What a shard of the corpus leaves behind for a range of a coder's latents; shards add up to the whole. Torch-free.

Letters: S sides (3), L latents of the range, H histogram cells, M firings, R activations of all firings, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from sae_core.errors import ConfigError
from sae_core.tensor_file import mapped

MOST_WINDOW = 128
"""Tokens of the longest window: positions and lengths of rows are kept in 8 bits."""


@dataclass(frozen=True)
class ExtractionSettings:
    """What to keep. The defaults are METHODS 1's."""

    context_length: int = 256
    """Tokens of a context, the BOS counted."""
    window_length: int = 32
    """Tokens of a window, at most 128."""
    context_tokens: int = 32
    """Tokens before a window that are kept for a reader."""
    top_exemplars: int = 10
    """Strongest firing windows kept of a latent and side."""
    sampled_exemplars: int = 20
    """Uniformly drawn firing windows kept of a latent and side."""
    pool_windows: int = 30_000
    """Uniformly drawn windows kept of a side, with all latents' activations."""
    batch_tokens: int | None = None
    """Tokens of one forward pass; None for what suits the device."""
    tau: float = 0.0
    """A latent fires where its activation exceeds this by magnitude."""
    seed: int = 0
    """Seed of the samples."""
    skip_non_finite: bool = False
    """Whether contexts with NaN or infinite activations are left out and counted, instead of ending the pass."""

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers that nothing could be extracted with."""
        if not 1 <= self.window_length <= MOST_WINDOW:
            raise ConfigError(f"a window has {self.window_length} tokens: give 1 to {MOST_WINDOW}.")
        for name in ("context_length", "top_exemplars", "sampled_exemplars", "pool_windows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give 1 or more.")

    @property
    def windows_per_context(self) -> int:
        return -(-self.context_length // self.window_length)


@dataclass(frozen=True)
class Firings:
    """Firing windows of latents, ordered by group: M of them, and the activations of all behind one another."""

    group: NDArray[np.int32]
    """[M] latent * S + side, the latent counted from 0 for the coder, not for the range."""
    window: NDArray[np.int64]
    """[M] ordinal of the window in the corpus."""
    key: NDArray[np.uint64]
    """[M] hash that draws the uniform sample: the smallest are in it."""
    peak: NDArray[np.float32]
    """[M] largest activation by magnitude: the largest are at the top."""
    row_length: NDArray[np.uint8]
    """[M] activations of the window that are not zero."""
    position: NDArray[np.uint8]
    """[R] position in the window."""
    value: NDArray[np.float32]
    """[R] activation."""

    @staticmethod
    def concatenate(parts: list[Firings]) -> Firings:
        return Firings(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Firings)))


@dataclass(frozen=True)
class PoolRows:
    """Windows with the activations of a range of latents: W windows, nnz entries behind one another."""

    window: NDArray[np.int64]
    """[W] ordinal of the window in the corpus."""
    row_length: NDArray[np.int32]
    """[W] entries of the window."""
    latent: NDArray[np.int32]
    """[nnz]"""
    position: NDArray[np.uint8]
    """[nnz] position in the window, ascending within it."""
    value: NDArray[np.float32]
    """[nnz]"""

    @staticmethod
    def concatenate(parts: list[PoolRows]) -> PoolRows:
        return PoolRows(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(PoolRows)))


_COUNTS = (
    "num_tokens",
    "num_windows",
    "skipped",
    "fire_count",
    "num_windows_firing",
    "max_activation",
    "sum_high",
    "sum_low",
    "histogram",
)


@dataclass(frozen=True)
class Partial:
    """Counts are of the shard alone; of its firings those are left out that earlier shards of the process crowd out."""

    first_latent: int
    """The range begins here."""
    num_tokens: NDArray[np.int64]
    """[S] tokens that count."""
    num_windows: NDArray[np.int64]
    """[S] windows with such a token."""
    skipped: NDArray[np.int64]
    """[2] contexts and tokens that were left out because activations were not finite."""
    fire_count: NDArray[np.int64]
    """[L, S]"""
    num_windows_firing: NDArray[np.int64]
    """[L, S]"""
    max_activation: NDArray[np.float32]
    """[L, S]"""
    sum_high: NDArray[np.int64]
    """[L, S] sum of the activations (:mod:`sae_core.fixed_point`)."""
    sum_low: NDArray[np.int64]
    """[L, S]"""
    histogram: NDArray[np.uint32]
    """[L, S, H]"""
    firings: Firings
    pool: PoolRows

    @property
    def num_latents(self) -> int:
        return len(self.fire_count)

    def save(self, path: Path) -> None:
        """Write as safetensors, under a temporary name first."""
        tensors: dict[str, NDArray[np.generic]] = {name: getattr(self, name) for name in _COUNTS}
        tensors["first_latent"] = np.asarray([self.first_latent], dtype=np.int64)
        tensors |= {f"firings.{f.name}": getattr(self.firings, f.name) for f in fields(Firings)}
        tensors |= {f"pool.{f.name}": getattr(self.pool, f.name) for f in fields(PoolRows)}
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary)
        temporary.replace(path)

    @staticmethod
    def load(path: Path) -> Partial:
        """Map what :meth:`save` wrote: nothing is read before it is used."""
        tensors = mapped(path)
        return Partial(
            first_latent=int(tensors["first_latent"][0]),
            **{name: tensors[name] for name in _COUNTS},
            firings=Firings(*(tensors[f"firings.{f.name}"] for f in fields(Firings))),
            pool=PoolRows(*(tensors[f"pool.{f.name}"] for f in fields(PoolRows))),
        )
