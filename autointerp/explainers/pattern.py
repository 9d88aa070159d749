"""The pattern explainer: no LLM, the label predicts an activation for every token (METHODS 2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from autointerp.evidence import EvidenceRequest, LatentEvidence, SuffixRequest
from autointerp.explainers.base import Explainer
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.llm.asking import NO_LLMS, LLMs
from autointerp.patterns.fitting import FitSettings, fit_patterns
from autointerp.patterns.index import pool_index
from autointerp.patterns.reading import describe
from sae_core.records import Side


class PatternExplainer(Explainer):
    """Token patterns from probed suffixes and from counts, written as a readable label."""

    kind: Literal["pattern"] = "pattern"
    """Name in the config file."""
    exemplars: int = Field(default=10, ge=0)
    """Exemplars for each latent whose shortest suffix is searched; 0 for counts alone."""
    keep: float = Field(default=0.5, gt=0, le=1)
    """Share of the peak activation that a suffix must keep."""
    longest_suffix: int = Field(default=32, ge=1)
    """Longest suffix that is tried, in tokens."""
    least_importance: float = Field(default=0.1, ge=0, le=1)
    """Importance below which a token of a suffix becomes a wildcard."""
    min_support: int = Field(default=2, ge=1)
    """Firing occurrences that a pattern needs, unless the latent has fewer than 10 in all."""
    gain_nats: float = Field(default=2.0, ge=0)
    """Log-likelihood in nats that a longer pattern must add over the shorter ones."""
    prior_count: float = Field(default=1.0, gt=0)
    """Occurrences that the shorter patterns' prediction counts for in a longer one's."""
    max_patterns: int = Field(default=800, ge=1)
    """Most patterns of a latent."""
    longest_label: int = Field(default=160, ge=40)
    """Length of a label in characters; all patterns stand in the payload."""

    def needs(self) -> list[EvidenceRequest]:
        """Suffixes, unless counts alone are asked for."""
        if not self.exemplars:
            return []
        return [SuffixRequest(exemplars=self.exemplars, keep=self.keep, longest=self.longest_suffix)]

    async def explain(self, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Explanation:
        """Patterns of one latent; ``dead``, ``too_few_windows`` and ``no_pattern`` are its failures.

        Reads the explain and the choose side of the pool, never the score side.
        """
        latent, store = evidence.latent, evidence.store
        if evidence.is_dead:
            tokens = int(store.statistics.num_tokens.sum())
            return self._failed(latent, FailureKind.DEAD, f"never fires in {tokens:,} tokens")
        index = pool_index(store.pool(Side.EXPLAIN))
        if not len(index.firing(latent)[0]) and not any(probe.found for probe in evidence.suffix_probes):
            counts = ", ".join(f"{evidence.num_windows_firing(side)} on {side.name.lower()}" for side in Side)
            message = f"fires in too few windows: {counts}, none of {index.num_windows:,} in the explain side's pool"
            return self._failed(latent, FailureKind.TOO_FEW_WINDOWS, message)
        settings = FitSettings(
            min_support=self.min_support,
            gain_nats=self.gain_nats,
            prior_count=self.prior_count,
            least_importance=self.least_importance,
            max_patterns=self.max_patterns,
        )
        choose = pool_index(store.pool(Side.CHOOSE))
        trie = fit_patterns(index, choose, latent, evidence.suffix_probes, settings)
        text = describe(trie, store.pieces, self.longest_label)
        if not text:
            firing = len(index.firing(latent)[0])
            message = f"no token or context predicts any of its {firing:,} firing tokens on the explain side"
            return self._failed(latent, FailureKind.NO_PATTERN, message)
        return Explanation(latent=latent, explainer=self.kind, text=text, payload=trie.to_payload())

    def _failed(self, latent: int, kind: FailureKind, message: str) -> Explanation:
        return Explanation(latent=latent, explainer=self.kind, failure=Failure(kind=kind, message=message))
