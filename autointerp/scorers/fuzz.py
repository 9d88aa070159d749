"""Does the label fit the marked tokens? Asked of right marks and of wrong ones at the same positions (METHODS 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from autointerp.evidence import EvidenceRequest, LatentEvidence, LensRequest
from autointerp.explanation import Explanation
from autointerp.judging.batching import Asked, deal
from autointerp.judging.marking import MarkedPair, mark_pairs
from autointerp.judging.outcome import missing_label, too_few, two_sided_score
from autointerp.judging.questions import Question, Said, answered, judge_questions
from autointerp.judging.supposed import NOT_ASKED, SupposedLabel
from autointerp.judging.verdicts import Verdict, Verdicts
from autointerp.judging.window_judge import WindowJudge
from autointerp.llm.asking import NO_LLMS, LLMs
from autointerp.planning.planned import MARK_TOKENS, PlannedCalls, PlanSizes
from autointerp.prompting.prompt import load_prompt
from autointerp.sampling.all_sides import without_sides
from autointerp.sampling.quantiles import sample_quantiles
from autointerp.sampling.silent import SILENT_STRATA, SilentStrata, sample_silent, silent_strata
from autointerp.sampling.window import ShownWindow, Stratum
from autointerp.score import Score, ScoreValue
from sae_core.hashing import seed_for


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """What is asked about a label."""

    pairs: list[MarkedPair]
    """In random order."""
    values: dict[str, ScoreValue]
    """Known of the score before anybody is asked."""

    @property
    def questions(self) -> list[Question]:
        """Both of each pair."""
        return [question for pair in self.pairs for question in pair]


class FuzzScorer(WindowJudge):
    """Accuracy of a judge that reads the label and tells right marks from wrong ones, in pairs of equal positions."""

    CHANCE: ClassVar[float | None] = 0.5

    kind: Literal["fuzz"] = "fuzz"
    """Name in the config file."""
    firing: int = Field(default=20, ge=1)
    """Activating windows with right marks, drawn uniformly; each is paired with a window with wrong ones."""
    firing_quantiles: int = Field(default=0, ge=0)
    """Bands of activation from which these are drawn in equal numbers; 0 for a uniform sample."""
    on_firing_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the wrong marks that stand on windows in which the latent fires elsewhere; the others stand on
    non-activating ones."""
    marks_most: int = Field(default=8, ge=1)
    """Most marked tokens of a window: its strongest ones."""

    def needs(self) -> list[EvidenceRequest]:
        """The latent's neighbours: windows in which they fire are marked wrongly before others are."""
        return [LensRequest()]

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """As many calls as the pairs take."""
        return self._planned("fuzz", sizes, self.firing, 2, MARK_TOKENS)

    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        """Judges one label on the scored side.

        Failures: ``no_explanation``, ``dead``, ``too_few_windows``, or the judge's own where a side has no answer.
        """
        missing = missing_label(self.kind, evidence.latent, explanation)
        if explanation is None or missing is not None:
            assert missing is not None
            return missing
        if not self.leak_free:
            evidence = without_sides(evidence)
        drawn = self._drawn(explanation, evidence)
        if isinstance(drawn, Score):
            return drawn
        rng = np.random.default_rng(seed_for(self.seed, "fuzz calls", evidence.latent))
        # both of a pair in one call: a failed call takes whole pairs with it
        calls = deal(drawn.pairs, self.per_call, rng)
        llm = llms.of(self.endpoint, self.kind)
        found_verdicts, asked = await judge_questions(
            llm,
            load_prompt("fuzz"),
            explanation.text,
            calls,
            evidence.store.pieces,
            context_tokens=self.context_tokens,
            logprobs=self.wants_logprobs(llm),
        )
        return self._counted(explanation, drawn, found_verdicts, asked, llm.model)

    def scores_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
        """See the base class."""
        if not labels:
            return []
        if not self.leak_free:
            evidence = without_sides(evidence)
        drawn = self._drawn(labels[0].explanation, evidence)
        if isinstance(drawn, Score):
            return [drawn] * len(labels)
        found = []
        for label in labels:
            verdicts = answered(drawn.questions, label.answers(drawn.questions))
            found.append(self._counted(label.explanation, drawn, verdicts, NOT_ASKED, ""))
        return found

    def _drawn(self, explanation: Explanation, evidence: LatentEvidence) -> _Drawn | Score:
        """The pairs that a judge is asked about, or the failed score of a latent with too few of them."""
        strata = silent_strata(evidence, evidence.scored_side)
        num_positives, pairs = self.pairs(evidence, strata)
        values: dict[str, ScoreValue] = {
            "fuzz_share_skipped": strata.share_skipped,
            "fuzz_unpaired": num_positives - len(pairs),
        }
        if not self.leak_free:
            values["fuzz_leak"] = 1
        if len(pairs) < self.min_windows:
            found = (
                f"{num_positives} activating windows may be judged and {len(pairs)} of them have a window to be paired "
                f"with, {self.min_windows} pairs are needed"
            )
            return too_few(self.kind, evidence, explanation, found, values)
        return _Drawn(pairs, values)

    def _counted(
        self,
        explanation: Explanation,
        drawn: _Drawn,
        found: Mapping[Question, Verdict],
        asked: Asked[Said],
        asked_model: str,
    ) -> Score:
        """The score of the answers."""
        verdicts = Verdicts(tuple(found[question] for question in drawn.questions))
        values = dict(drawn.values)
        values["fuzz_pairs"] = min(verdicts.num_judged_of(truth=truth) for truth in (True, False))
        return two_sided_score(self.kind, explanation.latent, explanation, verdicts, asked, asked_model, values)

    def pairs(self, evidence: LatentEvidence, strata: SilentStrata) -> tuple[int, list[MarkedPair]]:
        """Activating windows that were drawn, and the pairs that could be made of them, in random order."""
        positives, others = sample_quantiles(
            evidence, evidence.scored_side, self.firing, self.firing_quantiles, self.seed
        )
        # as many of each as there are positives, so that marks find a window that is long enough
        counts = dict.fromkeys(SILENT_STRATA, len(positives))
        silent = _hardest_first(sample_silent(strata, evidence, counts, self.seed))
        rng = np.random.default_rng(seed_for(self.seed, "fuzz pairs", evidence.latent))
        return len(positives), mark_pairs(positives, others, silent, self.on_firing_share, self.marks_most, rng)


def _hardest_first(windows: Sequence[ShownWindow]) -> list[ShownWindow]:
    """Windows of the hard strata in turn, then those of the bulk."""
    hard = [[w for w in windows if w.stratum is stratum] for stratum in SILENT_STRATA if stratum is not Stratum.BULK]
    mixed = [window for turn in zip_longest(*hard) for window in turn if window is not None]
    return [*mixed, *(window for window in windows if window.stratum is Stratum.BULK)]
