"""Hashes that decide which side a document stands on and which windows are sampled. Torch-free.

A decision by hash is the same in every process and in every order of work, so shards of a corpus
add up exactly to what one pass over it gives (METHODS 1).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def hash64(*columns: ArrayLike) -> NDArray[np.uint64]:
    """Uniform 64-bit hash of each row of integer ``columns`` (broadcast together), shape [rows].

    splitmix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators")
    applied column after column.
    """
    arrays = np.broadcast_arrays(*[np.asarray(c) for c in columns])
    state = np.zeros(arrays[0].shape, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for column in arrays:
            state = (state ^ column.astype(np.int64).astype(np.uint64)) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * _MIX_1
            state = (state ^ (state >> np.uint64(27))) * _MIX_2
            state = state ^ (state >> np.uint64(31))
    return state


def seed_for(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose of one run: ``np.random.default_rng(seed_for(run.seed, "ablation", latent))``."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
