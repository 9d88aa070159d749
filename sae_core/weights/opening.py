"""Which kind of file weights lie in."""

from __future__ import annotations

from pathlib import Path

from sae_core.weights.npz_file import open_npz
from sae_core.weights.pickle_file import open_pickle
from sae_core.weights.safetensors_file import open_safetensors
from sae_core.weights.stored import StoredFile


def open_stored(path: Path, *, allow_pickle: bool = False) -> StoredFile:
    """Look into a file of weights, by its ending: ``.safetensors``, ``.npz``, else a torch pickle.

    Raises CoderError for a file that is truncated, is no such file, or needs an opt-in that was not given.
    """
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    if path.suffix == ".npz":
        return open_npz(path)
    return open_pickle(path, allow_pickle=allow_pickle)
