"""What the ``lens`` and ``token_change`` stages leave behind: raw rows, no verdicts. Torch-free.

Letters in shapes: L latents of the source, F latents of a chunk, N neighbours, K tokens of a list.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_core.evidence_file import EvidenceTable


@dataclass(frozen=True, eq=False)
class LensEvidence(EvidenceTable):
    """Directions of all latents of a source, read through the final norm and the unembedding, and their neighbours."""

    _KIND = "lens evidence"

    neighbours: NDArray[np.int32]
    """[L, N] latents with the nearest decoder rows by cosine, nearest first, itself left out; -1 for none."""
    cosines: NDArray[np.float32]
    """[L, N] their cosines; 0 for none."""
    promoted: NDArray[np.int32]
    """[L, K] tokens that the direction raises most, strongest first; -1 for none."""
    promoted_logits: NDArray[np.float32]
    """[L, K] by how much, where the direction alone, scaled to the root mean square 1, goes through the norm; 0 for none."""
    suppressed: NDArray[np.int32]
    """[L, K] tokens that it lowers most, strongest first; -1 for none."""
    suppressed_logits: NDArray[np.float32]
    """[L, K] by how much (negative); 0 for none."""


@dataclass(frozen=True, eq=False)
class TokenChangeEvidence(EvidenceTable):
    """Mean change of the next token's logits over random prompts, with the latent steered at each prompt's last token."""

    _KIND = "token change evidence"

    latents: NDArray[np.int32]
    """[F] ascending."""
    strength: NDArray[np.float32]
    """[F] multiple of the decoder row that was added: as long as the hookpoint's activation is in the mean; 0 for a row of zeros."""
    raised: NDArray[np.int32]
    """[F, K] tokens raised most, strongest first; -1 for none."""
    raised_logits: NDArray[np.float32]
    """[F, K] by how much, mean over the prompts, less the mean over the vocabulary; 0 for none."""
    lowered: NDArray[np.int32]
    """[F, K] tokens lowered most, strongest first; -1 for none."""
    lowered_logits: NDArray[np.float32]
    """[F, K] by how much (negative)."""
    num_prompts: int
    """Prompts that the mean is over."""
