"""What extraction leaves behind about a source's latents. Torch-free.

Letters in shapes: L latents, S sides (3), W windows, T tokens of a window, P tokens of context kept
before it, E exemplars, H histogram cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

import numpy as np
from numpy.typing import NDArray


class Side(IntEnum):
    """Who may see a document: what an explainer has seen is never scored, what chose a label is not what scores it."""

    EXPLAIN = 0
    CHOOSE = 1
    SCORE = 2


SIDE_SHARES: dict[Side, float] = {Side.EXPLAIN: 0.4, Side.CHOOSE: 0.2, Side.SCORE: 0.4}


class Origin(StrEnum):
    """How an exemplar came into the store."""

    TOP = "top"
    SAMPLED = "sampled"


@dataclass(frozen=True, slots=True)
class Source:
    """One coder on one subject: what a labelled dictionary is about."""

    name: str
    """Short name, unique in a run, fit for a folder."""
    subject: str
    """Folder or hub id of the subject model, as the user gave it."""
    subject_revision: str
    """Hub commit, or the sha256 of a local folder's weights."""
    hookpoint: str
    """Module of the subject whose output the coder writes to (and reads from, for an SAE)."""
    coder: str
    """Folder or hub id of the coder, as the user gave it."""
    coder_fingerprint: str
    """sha256 of the coder's weights."""
    num_latents: int
    control: bool = False
    """True for a fake coder of random directions that stands beside a real one."""


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A stored firing window of one latent."""

    latent: int
    side: Side
    origin: Origin
    token_ids: NDArray[np.int32]
    """[T'] tokens of the window, T' <= T (a context's last window may be short)."""
    activations: NDArray[np.float32]
    """[T'] the latent's activation at each of them."""
    context_ids: NDArray[np.int32]
    """[P'] tokens before the window in the same context, oldest first, P' <= P; holds the BOS where it stands there."""
    document: int
    """Ordinal of the document in the corpus."""
    context: int
    """Ordinal of the context (a row of at most ``context_length`` tokens) in the corpus."""
    position: int
    """Position of the window's first token in its context, the BOS counted."""

    @property
    def peak(self) -> int:
        """Index in the window of the strongest activation by magnitude (the first, on ties)."""
        return int(np.argmax(np.abs(self.activations)))

    @property
    def max_activation(self) -> float:
        """The activation at :attr:`peak`."""
        return float(self.activations[self.peak])


HISTOGRAM_EDGES: NDArray[np.float64] = np.logspace(-4, 4, 33)
"""Edges of the log-spaced histogram of window maxima, in activation units; cell 0 lies below the first edge
and the last cell above the last one: H = 34 cells."""


@dataclass(frozen=True, slots=True)
class LatentStatistics:
    """Exact firing statistics of all latents, one row a side. Sum over axis 0 for the whole corpus."""

    num_tokens: NDArray[np.int64]
    """[S] tokens that count (BOS, EOS and padding do not)."""
    num_windows: NDArray[np.int64]
    """[S] windows with at least one such token."""
    fire_count: NDArray[np.int64]
    """[S, L] tokens on which the latent fires."""
    num_windows_firing: NDArray[np.int64]
    """[S, L] windows in which it fires."""
    max_activation: NDArray[np.float32]
    """[S, L] largest activation by magnitude, 0 where it never fires."""
    sum_activation: NDArray[np.float64]
    """[S, L] sum of the activations."""
    histogram: NDArray[np.int64]
    """[S, L, H] windows by their maximum, cells of :data:`HISTOGRAM_EDGES`."""


@dataclass(frozen=True, slots=True)
class WindowPool:
    """Uniformly drawn windows of one side with every latent's activations on them.

    A census (every window of the side) where the corpus has no more windows than the pool holds.
    """

    side: Side
    num_windows_side: int
    """Windows the side has in the corpus; equals W for a census."""
    tokens: NDArray[np.int32]
    """[W, P + T] the P tokens before the window, then its T tokens; -1 where there is none."""
    first_token: NDArray[np.int32]
    """[W] column of the window's first token that counts (P, or P + 1 where the window starts with the BOS)."""
    document: NDArray[np.int32]
    """[W] ordinal of the document in the corpus."""
    context: NDArray[np.int32]
    """[W] ordinal of the context in the corpus."""
    position: NDArray[np.int32]
    """[W] position of the window's first token in its context."""
    latent_start: NDArray[np.int64]
    """[L + 1] latent f's entries are ``latent_start[f]:latent_start[f + 1]`` of the three arrays below."""
    entry_window: NDArray[np.int32]
    """[nnz] row of ``tokens``; ascending within a latent."""
    entry_column: NDArray[np.uint8]
    """[nnz] column of ``tokens`` (P <= column < P + T); ascending within a window."""
    entry_value: NDArray[np.float32]
    """[nnz] activation, never 0."""
    context_tokens: int
    """P, the tokens kept before each window."""
    exemplar_tokens: NDArray[np.int32] | None = None
    """[X, P + T] windows of the side's exemplars, where the pool is a sample and need not hold them; None for a census."""

    @property
    def is_census(self) -> bool:
        """Whether every window of the side is in the pool."""
        return len(self.tokens) == self.num_windows_side

    def activations(self, latent: int) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.float32]]:
        """``(window, column, value)`` of one latent's activations, sorted by window, then column."""
        part = slice(int(self.latent_start[latent]), int(self.latent_start[latent + 1]))
        return self.entry_window[part], self.entry_column[part], self.entry_value[part]

    @property
    def counts(self) -> NDArray[np.bool_]:
        """[W, P + T] which cells of ``tokens`` are window tokens that count (no context, BOS or padding)."""
        columns = np.arange(self.tokens.shape[1])
        return (columns >= self.first_token[:, None]) & (self.tokens >= 0)


@dataclass(frozen=True, slots=True)
class SuffixProbe:
    """What the probe stage found at one exemplar's peak (METHODS 2, the pattern explainer)."""

    latent: int
    token_ids: NDArray[np.int32]
    """[n] shortest suffix of the context, ending at the peak token, that keeps the asked share of the peak; BOS not included."""
    importances: NDArray[np.float32]
    """[n] 1 - activation with that token masked / activation of the suffix; 0 for tokens too far back to be measured."""
    peak_activation: float
    """Activation at the peak in the full context."""
    suffix_activation: float
    """Activation at the peak when only BOS and the suffix are run."""
    starts_sequence: bool
    """Whether the suffix must stand at the start of the sequence (written ``(^)``)."""
    found: bool
    """False where even the longest suffix tried does not keep the asked share; the longest one is given then."""
