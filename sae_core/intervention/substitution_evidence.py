"""What substitution leaves behind for those who score: raw rows, no verdicts. Torch-free.

Letters in shapes: M rows, F latents, C contexts, V ways of filling the latents in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_core.evidence_file import EvidenceTable

OWN, CONTROL = 0, 1
"""``arm`` of a row: the latent's own label, or what stands in for a label that says nothing of it."""


@dataclass(frozen=True, eq=False)
class SubstitutionEvidence(EvidenceTable):
    """Latents replaced by what a label predicts, window by window: ``h' = h + (zhat - z) d``.

    A row is one window of one latent under one arm; all of one latent's rows stand together. KLs are KL(clean || edited)
    in nats, *summed* over the window's tokens, so that windows of different spans add up to the text that they stand for.
    """

    _KIND = "substitution evidence"
    _SHARED = ("explainers",)

    latent: NDArray[np.int32]
    """[M]"""
    arm: NDArray[np.uint8]
    """[M] :data:`OWN` or :data:`CONTROL`."""
    fires: NDArray[np.uint8]
    """[M] 1: the latent fires in the window, drawn uniformly from those; 0: it is silent and the arm predicts an activation."""
    document: NDArray[np.int32]
    """[M] ordinal of the document."""
    context: NDArray[np.int32]
    """[M] ordinal of the context."""
    position: NDArray[np.int32]
    """[M] position of the window's first token in its context."""
    kl: NDArray[np.float64]
    """[M] with the activations that the arm predicts."""
    kl_ablated: NDArray[np.float64]
    """[M] with none; 0 where the latent is silent."""
    delta_ce: NDArray[np.float64]
    """[M] change of the true next tokens' cross-entropy under ``kl``'s edit, nats, summed over the window."""
    delta_ce_ablated: NDArray[np.float64]
    """[M] the same under ``kl_ablated``'s."""
    latents: NDArray[np.int32]
    """[F] every latent that was asked for, with or without rows."""
    explainer: NDArray[np.int32]
    """[F] index in ``explainers`` of the one that wrote the label."""
    donor: NDArray[np.int32]
    """[F] latent whose label is the control; -1 where the label's own predictions were dealt to other windows."""
    share_firing: NDArray[np.float64]
    """[F] share of the windows that may be scored in which the latent fires."""
    share_silent: NDArray[np.float64]
    """[F, 2] share in which it is silent and the arm predicts an activation, by arm; NaN where there is no such arm. Above 0
    without a silent row where such windows are known to be there and none was judged."""
    share_spread: NDArray[np.float64]
    """[F, 2] relative variance of ``share_silent / share_firing``, which are counted on finitely many windows."""
    share_of_one: NDArray[np.float64]
    """[F] what one window adds to ``share_silent`` where that is known from a sample of the side; 0 where all were counted."""
    num_lost: NDArray[np.int32]
    """[F] firing windows left out because the latent was silent when the subject was run again (rounding at a threshold)."""
    explainers: list[str]
    """Kinds of explainers."""

    def rows_of(self, latent: int, arm: int, fires: bool) -> NDArray[np.intp]:
        """Indices of a latent's firing or silent rows under an arm."""
        return np.flatnonzero((self.latent == latent) & (self.arm == arm) & (self.fires == int(fires)))


SUBSTITUTED, ZERO, SHUFFLED, MEAN = "substituted", "zero", "shuffled", "mean"
WAYS = (SUBSTITUTED, ZERO, SHUFFLED, MEAN)
"""How all labelled latents of a coder are filled in at once: what the labels predict; nothing; what other latents' labels
predict; each one's mean activation wherever it fires (which says when it fires, but not how strongly)."""


@dataclass(frozen=True, eq=False)
class JointSubstitutionEvidence(EvidenceTable):
    """All labelled latents of a coder replaced at once, context by context; the coder's error is kept.

    A row is one context of the score side. Sums run over the tokens that may be scored and have a next token.
    """

    _KIND = "joint substitution evidence"
    _SHARED = ("ways",)

    context: NDArray[np.int32]
    """[C] ordinal of the context."""
    document: NDArray[np.int32]
    """[C] ordinal of the document."""
    num_tokens: NDArray[np.int32]
    """[C] tokens that the sums run over."""
    clean_ce: NDArray[np.float64]
    """[C] sum of the subject's own cross-entropy, nats."""
    kl: NDArray[np.float64]
    """[C, V] sum of KL(clean || edited), nats."""
    delta_ce: NDArray[np.float64]
    """[C, V] sum of the change of cross-entropy, nats."""
    ways: list[str]
    """V names, see :data:`WAYS`."""
    num_latents: int
    """Latents that were replaced."""
    num_left: int
    """Labelled latents that were left as they are, since their label predicts no activation for every token."""

    def of(self, way: str) -> NDArray[np.float64]:
        """[C] ``kl`` of one way."""
        return self.kl[:, self.ways.index(way)]
