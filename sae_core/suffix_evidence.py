"""Evidence of the probe stage on disk: shortest suffixes and token importances. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from sae_core.records import SuffixProbe


def save_suffix_probes(path: Path, probes: Sequence[SuffixProbe]) -> None:
    """Write as safetensors, under a temporary name first."""
    no_tokens, no_importances = np.empty(0, np.int32), np.empty(0, np.float32)
    lengths = np.asarray([len(p.token_ids) for p in probes], dtype=np.int64)
    tensors: dict[str, NDArray[np.generic]] = {
        "latent": np.asarray([p.latent for p in probes], dtype=np.int32),
        "start": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "token_ids": np.concatenate([no_tokens, *(p.token_ids for p in probes)]),
        "importances": np.concatenate([no_importances, *(p.importances for p in probes)]),
        "peak_activation": np.asarray([p.peak_activation for p in probes], dtype=np.float32),
        "suffix_activation": np.asarray([p.suffix_activation for p in probes], dtype=np.float32),
        "starts_sequence": np.asarray([p.starts_sequence for p in probes], dtype=np.uint8),
        "found": np.asarray([p.found for p in probes], dtype=np.uint8),
    }
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary)
    temporary.replace(path)


def load_suffix_probes(path: Path) -> dict[int, list[SuffixProbe]]:
    """Probes by latent; latents without one are not in it."""
    table = load_file(path)
    out: dict[int, list[SuffixProbe]] = {}
    for row, latent in enumerate(table["latent"].tolist()):
        part = slice(int(table["start"][row]), int(table["start"][row + 1]))
        probe = SuffixProbe(
            latent=latent,
            token_ids=table["token_ids"][part],
            importances=table["importances"][part],
            peak_activation=float(table["peak_activation"][row]),
            suffix_activation=float(table["suffix_activation"][row]),
            starts_sequence=bool(table["starts_sequence"][row]),
            found=bool(table["found"][row]),
        )
        out.setdefault(latent, []).append(probe)
    return out
