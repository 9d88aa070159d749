"""Texts that the subject wrote with a latent steered and without, for those who judge them. Torch-free.

Letters in shapes: F latents, P prompts, M texts, T tokens of a text.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from sae_core.evidence_file import EvidenceTable

CLEAN = -1
"""In the place of the latent that was steered: none was."""
LEAST_DISTINCT = 0.5
"""Share of a text's pairs of neighbouring tokens that must be different ones; below it the text repeats itself."""
_LEAST_TOKENS = 4
"""Tokens below which nothing can be said to repeat."""


class TextState(IntEnum):
    """Why a latent has texts, or none."""

    TEXTS = 0
    """It has some."""
    TOO_FEW_WINDOWS = 1
    """It fires in no window in which a strength could be found, or after which there is room for a text."""
    UNREACHABLE = 2
    """No strength of steering meets the target."""
    NO_ROOM = 3
    """No instruction leaves room for an answer in the subject's contexts."""


class Collapse(IntEnum):
    """What is wrong with a text, where steering has broken the subject rather than turned its writing."""

    NONE = 0
    """Nothing."""
    IMPROBABLE = 1
    """The clean subject would hardly write it: see :meth:`SteeredTexts.collapse`."""
    REPEATS = 2
    """It says the same again and again."""
    EMPTY = 3
    """The subject ended it before its first token."""


@dataclass(frozen=True, eq=False)
class SteeredTexts(EvidenceTable):
    """Continuations of prompts, written with one latent steered (``h' = h + alpha d``) or with none, from the same seeds.

    A row is one text. Steered are the prompt's last token and every token that is written after it, each once.
    """

    _KIND = "steered texts"

    latents: NDArray[np.int32]
    """[F] every latent that was asked for, ascending."""
    state: NDArray[np.uint8]
    """[F] :class:`TextState`."""
    prompt_context: NDArray[np.int32]
    """[P] ordinal of the context that the prompt is a part of; -1 where it is none of the corpus."""
    prompt_start: NDArray[np.int64]
    """[P + 1] where each prompt begins in ``prompt_tokens``, and where the last one ends."""
    prompt_tokens: NDArray[np.int32]
    """Tokens of all prompts, one after the other, BOS included."""
    latent: NDArray[np.int32]
    """[M] the latent that the text was made for."""
    prompt: NDArray[np.int32]
    """[M] its prompt; texts of one prompt share their seed."""
    steered: NDArray[np.int32]
    """[M] the latent that was steered: the same one, or another one to be told from it, or :data:`CLEAN`."""
    target: NDArray[np.float64]
    """[M] KL(clean || steered) at which it was steered, nats a token; NaN where nothing was."""
    alpha: NDArray[np.float64]
    """[M] multiple of the decoder row; 0 where nothing was steered."""
    tokens: NDArray[np.int32]
    """[M, T] what was written; -1 behind its end."""
    logprob_own: NDArray[np.float32]
    """[M, T] log-probability of each token to the subject that wrote it, steered as it was; 0 behind the end."""
    logprob_clean: NDArray[np.float32]
    """[M, T] the same to the clean subject."""
    instructions: list[str]
    """[P] what each prompt asks for; empty where prompts are text of the corpus."""
    temperature: float
    """At which the texts were drawn."""

    def state_of(self, latent: int) -> TextState | None:
        """Whether a latent has texts; None where it was not asked for."""
        place = np.flatnonzero(self.latents == latent)
        return TextState(int(self.state[place[0]])) if len(place) else None

    def rows_of(self, latent: int) -> NDArray[np.intp]:
        """Rows of the texts that were made for a latent."""
        return np.flatnonzero(self.latent == latent)

    def prompt_ids(self, prompt: int) -> NDArray[np.int32]:
        """Tokens of a prompt."""
        return self.prompt_tokens[self.prompt_start[prompt] : self.prompt_start[prompt + 1]]

    def text_ids(self, row: int) -> NDArray[np.int32]:
        """Tokens of a text."""
        ids: NDArray[np.int32] = self.tokens[row]
        return ids[ids >= 0]

    @property
    def surprise(self) -> NDArray[np.float64]:
        """[M] log of each text's perplexity to the clean subject, nats a token; NaN for a text without tokens."""
        written = self.tokens >= 0
        total = np.where(written, self.logprob_clean, 0).sum(axis=1, dtype=np.float64)
        count = written.sum(axis=1)
        mean: NDArray[np.float64] = np.divide(-total, count, out=np.full(len(count), np.nan), where=count > 0)
        return mean

    def collapse(self, factor: float) -> NDArray[np.uint8]:
        """[M] :class:`Collapse` of each text.

        A text is improbable where its perplexity to the clean subject is more than ``factor`` times that of the clean texts
        made for the same latent (all their tokens together). It repeats itself where fewer than half of its pairs of neighbouring
        tokens are different ones.
        """
        found = np.full(len(self.latent), Collapse.NONE, dtype=np.uint8)
        surprise = self.surprise
        for latent in np.unique(self.latent):
            own = self.rows_of(int(latent))
            clean = own[self.steered[own] == CLEAN]
            written = self.tokens[clean] >= 0
            if written.any():
                usual = -float(self.logprob_clean[clean][written].mean(dtype=np.float64))
                found[own[surprise[own] > usual + math.log(factor)]] = Collapse.IMPROBABLE
        for row, tokens in enumerate(self.tokens):
            ids = tokens[tokens >= 0].tolist()
            pairs = list(itertools.pairwise(ids))
            if not ids:
                found[row] = Collapse.EMPTY
            elif len(ids) >= _LEAST_TOKENS and len(set(pairs)) < LEAST_DISTINCT * len(pairs):
                found[row] = Collapse.REPEATS
        return found
