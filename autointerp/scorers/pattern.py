"""Counted precision and recall of a pattern label at the natural base rate (METHODS 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.judging.supposed import SupposedLabel
from autointerp.llm.asking import NO_LLMS, LLMs
from autointerp.patterns.counting import ScoredWindows, WindowCounts, count_supposed, count_windows, scored_windows
from autointerp.patterns.token_rule import rule_values, token_rule_trie
from autointerp.patterns.trie import PatternTrie
from autointerp.score import Score, ScoreValue, defined
from autointerp.scorers.base import Scorer
from autointerp.statistics.correlation import document_correlation
from autointerp.statistics.counted import counted_ratios
from sae_core.hashing import seed_for
from sae_core.records import Side

_DENSE = 0.2
"""Share of firing windows above which windows say little and tokens are counted too (METHODS 4)."""


class PatternScorer(Scorer):
    """Precision, recall and F1 of a pattern, counted on the score side of the window pool."""

    COUNTS: ClassVar[bool] = True

    kind: Literal["pattern"] = "pattern"
    """Name in the config file."""
    skip_repeated: bool = True
    """Whether windows that share a run of 13 tokens with the explain side are left out."""
    seed: int = 0
    """Seed of the bootstrap for the correlation's interval."""
    min_windows: int = Field(default=1, ge=1)
    """Firing windows that the score side must have."""

    @property
    def headline(self) -> str:
        """F1."""
        return "f1"

    def can_judge(self, explanation: Explanation) -> bool:
        """Patterns, and what is left of explanations that failed: the windows counted and the token rule."""
        return explanation.side == "input" and (
            explanation.failure is not None or PatternTrie.reads(explanation.payload)
        )

    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        """Counts of one label on the score side, with the token rule and the always-yes baseline beside it.

        ``no_explanation`` and ``too_few_windows`` are its failures; the numbers of windows stand beside both.
        """
        latent = evidence.latent
        windows = self._windows(evidence)
        rule = token_rule_trie(evidence)
        if explanation is None or explanation.failure is not None:
            counts = count_windows(PatternTrie(()), latent, windows)
            values = _basis(counts, windows) | rule_values(rule, latent, windows)
            reason = explanation.failure.message if explanation and explanation.failure else "none was written"
            failure = Failure(kind=FailureKind.NO_EXPLANATION, message=f"there is no label to score: {reason}")
            name = explanation.explainer if explanation else None
            return Score(latent=latent, scorer=self.kind, explainer=name, values=defined(values), failure=failure)
        counts = count_windows(PatternTrie.from_payload(explanation.payload), latent, windows)
        rng = np.random.default_rng(seed_for(self.seed, "correlation", latent))
        values = score_values(counts, windows, rng) | rule_values(rule, latent, windows)
        return Score(
            latent=latent,
            scorer=self.kind,
            explainer=explanation.explainer,
            values=defined(values),
            failure=self._too_few(counts),
        )

    def scores_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
        """See the base class; the ratios alone, without the correlation and the token rule."""
        windows, latent = self._windows(evidence), evidence.latent
        pool, fires = windows.index.pool, windows.index.windows_firing(latent)
        scores = []
        for label in labels:
            counts = count_supposed(label.holds_in(pool, fires), latent, windows)
            values = defined(_basis(counts, windows) | _ratio_values(counts))
            scores.append(
                Score(
                    latent=latent,
                    scorer=self.kind,
                    explainer=label.explanation.explainer,
                    values=values,
                    failure=self._too_few(counts),
                )
            )
        return scores

    def _windows(self, evidence: LatentEvidence) -> ScoredWindows:
        store = evidence.store
        return scored_windows(
            store.pool(evidence.scored_side), store.pool(Side.EXPLAIN) if self.skip_repeated else None
        )

    def _too_few(self, counts: WindowCounts) -> Failure | None:
        if counts.num_firing >= self.min_windows:
            return None
        return Failure(
            kind=FailureKind.TOO_FEW_WINDOWS,
            message=f"fires in {counts.num_firing} of {counts.num_windows:,} windows of the score side, "
            f"{self.min_windows} are needed",
        )


def score_values(counts: WindowCounts, windows: ScoredWindows, rng: np.random.Generator) -> dict[str, ScoreValue]:
    """All values of a prediction except those of the token rule."""
    correlation = document_correlation(
        windows.positions_D, counts.sum_p_D, counts.sum_t_D, counts.sum_pp_D, counts.sum_tt_D, counts.sum_pt_D, rng
    )
    values = _basis(counts, windows) | _ratio_values(counts)
    values |= {
        "correlation": correlation.value,
        "correlation_low": correlation.low,
        "correlation_high": correlation.high,
        "correlation_constant": int(correlation.constant),
    }
    dense = counts.rate > _DENSE
    values["token_precision"] = _share(counts.token_both, counts.token_predicted) if dense else None
    values["token_recall"] = _share(counts.token_both, counts.token_firing) if dense else None
    return values


def _basis(counts: WindowCounts, windows: ScoredWindows) -> dict[str, ScoreValue]:
    rate = counts.rate
    return {
        "precision_method": "counted",
        "precision_basis": "counted",
        "num_documents": windows.num_documents,
        "num_judged": counts.num_windows,
        "num_windows_scored": counts.num_windows,
        "num_windows_firing_scored": counts.num_firing,
        "num_windows_predicted": counts.num_predicted,
        "share_skipped": windows.share_skipped,
        "always_yes_precision": rate if counts.num_windows else None,
        "always_yes_f1": 2 * rate / (1 + rate) if counts.num_windows else None,
    }


def _ratio_values(counts: WindowCounts) -> dict[str, ScoreValue]:
    ratios = counted_ratios(counts.both_D, counts.predicted_D, counts.firing_D)
    silent = counts.num_windows - counts.num_firing
    false = counts.num_predicted - counts.num_both
    balanced: float | None = None
    if silent and counts.num_firing:
        balanced = 0.5 * (counts.num_both / counts.num_firing + 1 - false / silent)
    return {
        "precision": ratios.precision,
        "precision_low": ratios.precision_low,
        "precision_high": ratios.precision_high,
        "recall": ratios.recall,
        "recall_low": ratios.recall_low,
        "recall_high": ratios.recall_high,
        "f1": ratios.f1,
        "f1_low": ratios.f1_low,
        "f1_high": ratios.f1_high,
        "predicts_nothing": int(ratios.predicts_nothing),
        "balanced_accuracy": balanced,
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
