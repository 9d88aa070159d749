"""What a shard of the corpus leaves behind for one coder; partials of all shards add up to the whole. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from sae_core.records import HISTOGRAM_EDGES
from sae_core.reservoir import FiringReservoir, Firings, PoolReservoir, PoolRows


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
    batch_tokens: int = 8_192
    """Tokens of one forward pass."""
    tau: float = 0.0
    """A latent fires where its activation exceeds this by magnitude."""
    seed: int = 0
    """Seed of the samples."""

    @property
    def windows_per_context(self) -> int:
        return -(-self.context_length // self.window_length)


_COUNTS = (
    "num_tokens",
    "num_windows",
    "fire_count",
    "num_windows_firing",
    "max_activation",
    "sum_activation",
    "histogram",
)


@dataclass
class Partial:
    """Statistics and reservoirs, flat over (side, latent)."""

    num_latents: int
    num_tokens: NDArray[np.int64]
    """[S]"""
    num_windows: NDArray[np.int64]
    """[S]"""
    fire_count: NDArray[np.int64]
    """[S * L]"""
    num_windows_firing: NDArray[np.int64]
    """[S * L]"""
    max_activation: NDArray[np.float32]
    """[S * L]"""
    sum_activation: NDArray[np.float64]
    """[S * L]"""
    histogram: NDArray[np.int64]
    """[S * L * H]"""
    top: FiringReservoir
    sampled: FiringReservoir
    pools: tuple[PoolReservoir, PoolReservoir, PoolReservoir]

    @staticmethod
    def empty(num_latents: int, settings: ExtractionSettings) -> Partial:
        """A partial of no tokens."""
        groups = 3 * num_latents
        return Partial(
            num_latents=num_latents,
            num_tokens=np.zeros(3, np.int64),
            num_windows=np.zeros(3, np.int64),
            fire_count=np.zeros(groups, np.int64),
            num_windows_firing=np.zeros(groups, np.int64),
            max_activation=np.zeros(groups, np.float32),
            sum_activation=np.zeros(groups, np.float64),
            histogram=np.zeros(groups * (len(HISTOGRAM_EDGES) + 1), np.int64),
            top=FiringReservoir(groups, settings.top_exemplars),
            sampled=FiringReservoir(groups, settings.sampled_exemplars),
            pools=(
                PoolReservoir(settings.pool_windows),
                PoolReservoir(settings.pool_windows),
                PoolReservoir(settings.pool_windows),
            ),
        )

    def absorb(self, other: Partial) -> None:
        """Add another shard's partial. Sums are added in the order of the calls."""
        for name in _COUNTS:
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, np.maximum(mine, theirs) if name == "max_activation" else mine + theirs)
        self.top.add(other.top.result())
        self.sampled.add(other.sampled.result())
        for mine_pool, their_pool in zip(self.pools, other.pools, strict=True):
            mine_pool.add(their_pool.result())

    def save(self, path: Path) -> None:
        """Write as safetensors, under a temporary name first."""
        tensors: dict[str, NDArray[np.generic]] = {name: getattr(self, name) for name in _COUNTS}
        for name, firings in (("top", self.top.result()), ("sampled", self.sampled.result())):
            tensors |= {f"{name}.{f.name}": getattr(firings, f.name) for f in fields(Firings)}
        for side, pool in enumerate(self.pools):
            rows = pool.result()
            tensors |= {f"pool{side}.{f.name}": getattr(rows, f.name) for f in fields(PoolRows)}
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary)
        temporary.replace(path)

    @staticmethod
    def load(path: Path, num_latents: int, settings: ExtractionSettings) -> Partial:
        """Read what :meth:`save` wrote."""
        tensors = load_file(path)
        partial = Partial.empty(num_latents, settings)
        for name in _COUNTS:
            setattr(partial, name, tensors[name])
        partial.top.add(Firings(*(tensors[f"top.{f.name}"] for f in fields(Firings))))
        partial.sampled.add(Firings(*(tensors[f"sampled.{f.name}"] for f in fields(Firings))))
        for side, pool in enumerate(partial.pools):
            pool.add(PoolRows(*(tensors[f"pool{side}.{f.name}"] for f in fields(PoolRows))))
        return partial
