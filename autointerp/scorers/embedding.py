"""Is the label near the text? Cosine of their sentence embeddings: no LLM, cheap, and weak (METHODS 3)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.judging.natural_judge import NaturalJudge
from autointerp.judging.outcome import missing_label
from autointerp.judging.supposed import SupposedLabel
from autointerp.llm.asking import NO_LLMS, LLMs
from autointerp.prompting.quoting import window_text
from autointerp.score import Score
from autointerp.sentence_embedding import check_embedder, local_embedder


class EmbeddingScorer(NaturalJudge):
    """How well the cosine of label and window tells activating windows from others."""

    CHANCE: ClassVar[float | None] = 0.5

    kind: Literal["embedding"] = "embedding"
    """Name in the config file."""
    firing: int = Field(default=50, ge=1)
    """Activating windows, drawn uniformly."""
    silent: int = Field(default=50, ge=1)
    """Non-activating windows, drawn uniformly."""
    model: str = ""
    """Folder of a BERT-like sentence embedding model; "" for the one of the extra ``autointerp[embed]``."""

    def check(self) -> None:
        """Refuse before anything is spent what cannot run here. Errors: ConfigError, with the command that installs it."""
        check_embedder(self.model)

    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        """Ranks windows of the scored side by their nearness to the label.

        Failures: ``no_explanation``, ``dead``, ``too_few_windows``.
        """
        missing = missing_label(self.kind, evidence.latent, explanation)
        if explanation is None or missing is not None:
            assert missing is not None
            return missing
        sample = self.draw(evidence)
        if (short := self.shortage(sample, explanation, evidence, self.min_windows)) is not None:
            return short
        embedder, pieces = local_embedder(self.model), evidence.store.pieces
        texts = [explanation.text, *(window_text(window, pieces) for window in sample.windows)]
        # seconds of arithmetic, while other latents' calls go on
        vectors = await asyncio.to_thread(embedder.embed, texts)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        cosines = [float(cosine) for cosine in unit[1:] @ unit[0]]
        return self.ranked(explanation, sample, cosines, {"embedding_model": embedder.name})

    def scores_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
        """See the base class."""
        return self.ranked_if(labels, evidence)
