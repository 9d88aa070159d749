"""Does the label fit the window? Asked of activating and non-activating windows, several a call (METHODS 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from autointerp.evidence import EvidenceRequest, LatentEvidence, LensRequest
from autointerp.explanation import Explanation
from autointerp.judging.batching import deal
from autointerp.judging.confirming import JudgedTwice, answered_twice, judge_once, judge_twice
from autointerp.judging.outcome import failed_of, missing_label, too_few, two_sided_score
from autointerp.judging.questions import Question
from autointerp.judging.supposed import NOT_ASKED, SupposedLabel
from autointerp.judging.verdicts import Verdicts
from autointerp.judging.window_judge import WindowJudge
from autointerp.llm.asking import NO_LLMS, LLMs
from autointerp.planning.planned import PlannedCalls, PlanSizes
from autointerp.prompting.prompt import load_prompt
from autointerp.sampling.all_sides import without_sides
from autointerp.sampling.firing import sample_firing
from autointerp.sampling.natural import firing_rate
from autointerp.sampling.quantiles import sample_quantiles
from autointerp.sampling.silent import SilentStrata, allocate, places, sample_silent, silent_strata, uniform_counts
from autointerp.sampling.window import ShownWindow, Stratum
from autointerp.score import Score, ScoreValue
from sae_core.hashing import seed_for
from sae_core.records import Side


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """What is asked about a label."""

    strata: SilentStrata
    """Of the silent windows."""
    questions: list[Question]
    """Activating windows first."""
    values: dict[str, ScoreValue]
    """Known of the score before anybody is asked."""


class DetectionScorer(WindowJudge):
    """Balanced accuracy of a judge that reads the label and tells activating windows from others."""

    CHANCE: ClassVar[float | None] = 0.5

    kind: Literal["detection"] = "detection"
    """Name in the config file."""
    per_call: int = Field(default=25, ge=2)
    """Windows in one call."""
    firing: int = Field(default=20, ge=1)
    """Activating windows that are judged, drawn uniformly."""
    firing_quantiles: int = Field(default=0, ge=0)
    """Bands of activation from which these are drawn in equal numbers; 0 for a uniform sample."""
    silent: int = Field(default=20, ge=1)
    """Non-activating windows that are judged."""
    silent_selection: Literal["strata", "uniform"] = "strata"
    """Non-activating windows by the shares below, or uniformly from all of them."""
    neighbour_share: float = Field(default=0.25, ge=0, le=1)
    """Share of them in which one of the latent's nearest decoder neighbours fires."""
    token_share: float = Field(default=0.25, ge=0, le=1)
    """Share of them that hold the token on which the latent fires most; all others come from the bulk."""
    confirm: bool = True
    """Whether a yes on a non-activating window is asked again, in other company: precision at the natural rate counts it only if it
    is said twice. Balanced accuracy goes by the first answers, as elsewhere."""

    @model_validator(mode="after")
    def _shares(self) -> DetectionScorer:
        if self.neighbour_share + self.token_share > 1:
            raise ValueError("neighbour_share and token_share are parts of one whole: give at most 1 in sum")
        return self

    def needs(self) -> list[EvidenceRequest]:
        """The latent's neighbours, where windows are drawn by them."""
        return [LensRequest()] if self.silent_selection == "strata" and self.neighbour_share > 0 else []

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """As many calls as the windows take."""
        return self._planned("detection", sizes, self.firing + self.silent)

    def planned_again(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """The calls in which a yes on a silent window is asked again."""
        if not self.confirm:
            return []
        # loads scipy, which nothing else here needs
        from autointerp.planning.second_asking import second_asking, supposed_labels

        judged = self.firing + self.silent
        yes = supposed_labels(self.silent_by_stratum).yes.sum(axis=1)
        expected = self.planned_windows(sizes, *second_asking(yes, judged, self.per_call))
        most = self.planned_windows(sizes, *second_asking([self.silent], judged, self.per_call))
        return [replace(expected, most=most)]

    @property
    def silent_by_stratum(self) -> tuple[int, int, int, int]:
        """Silent windows near by neighbour, holding the token, near by embedding and of the bulk, where no stratum is short of them.

        Of a uniform sample all count as bulk, where most of it lies.
        """
        shares = (self.neighbour_share, self.token_share) if self.silent_selection == "strata" else (0.0, 0.0)
        neighbour, token = (round(self.silent * share) for share in shares)
        return neighbour, token, 0, self.silent - neighbour - token

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
        rng = np.random.default_rng(seed_for(self.seed, "detection calls", evidence.latent))
        calls = deal([[question] for question in drawn.questions], self.per_call, rng)
        llm = llms.of(self.endpoint, self.kind)
        judge = judge_twice if self._asks_again(evidence) else judge_once
        judged = await judge(
            llm,
            load_prompt("detection"),
            explanation.text,
            calls,
            evidence.store.pieces,
            rng,
            per_call=self.per_call,
            context_tokens=self.context_tokens,
            logprobs=self.wants_logprobs(llm),
        )
        return self._counted(explanation, evidence, drawn, judged, llm.model)

    def scores_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
        """See the base class; windows that a screen has flagged for a label are looked up under the name of its error."""
        if not self.leak_free:
            evidence = without_sides(evidence)
        found = []
        for label in labels:
            drawn = self._drawn(label.explanation, evidence)
            if isinstance(drawn, Score):
                found.append(drawn)
                continue
            answers = label.answers(drawn.questions)
            verdicts = answered_twice(drawn.questions, answers, again=self._asks_again(evidence))
            judged = JudgedTwice(verdicts, NOT_ASKED)
            found.append(self._counted(label.explanation, evidence, drawn, judged, ""))
        return found

    def _asks_again(self, evidence: LatentEvidence) -> bool:
        # a choice between labels has no use for a second answer
        return self.confirm and evidence.scored_side is Side.SCORE

    def _drawn(self, explanation: Explanation, evidence: LatentEvidence) -> _Drawn | Score:
        """The questions about a label, or the failed score of a latent with too few windows."""
        side, latent = evidence.scored_side, evidence.latent
        strata = silent_strata(evidence, side)
        firing = self._firing(evidence)
        screened = evidence.screened.get(explanation.explainer) if self.leak_free and side is Side.SCORE else None
        silent = sample_silent(strata, evidence, self._counts(strata, latent), self.seed, screened)
        flagged = set() if screened is None else places(evidence.store.pool(side), screened.flagged)
        values: dict[str, ScoreValue] = {"detection_share_skipped": strata.share_skipped}
        if not self.leak_free:
            values["detection_leak"] = 1
        if min(len(firing), len(silent)) < self.min_windows:
            found = (
                f"{len(firing)} activating and {len(silent)} non-activating windows may be judged, "
                f"{self.min_windows} of each are needed"
            )
            return too_few(self.kind, evidence, explanation, found, values)
        questions = [Question(window, window.fires, flagged=window.place in flagged) for window in (*firing, *silent)]
        return _Drawn(strata, questions, values)

    def _counted(
        self, explanation: Explanation, evidence: LatentEvidence, drawn: _Drawn, judged: JudgedTwice, asked_model: str
    ) -> Score:
        """The score of the answers."""
        verdicts = Verdicts(
            tuple(judged.verdicts[question] for question in drawn.questions),
            drawn.strata.counts,
            firing_rate(evidence, drawn.strata),
        )
        values = drawn.values | {
            "detection_firing": verdicts.num_judged_of(truth=True),
            "detection_silent": verdicts.num_judged_of(truth=False),
            "detection_asked_again": sum(item.again is not None for item in verdicts.items),
            "detection_company": judged.company,
            "detection_agreed": judged.agreed,
            **{name: n for name, n in failed_of("detection_again", judged.lost).items() if n},
        }
        return two_sided_score(self.kind, evidence.latent, explanation, verdicts, judged.asked, asked_model, values)

    def _firing(self, evidence: LatentEvidence) -> list[ShownWindow]:
        side = evidence.scored_side
        if self.firing_quantiles:
            return sample_quantiles(evidence, side, self.firing, self.firing_quantiles, self.seed)[0]
        return sample_firing(evidence, side, self.firing, self.seed)

    def _counts(self, strata: SilentStrata, latent: int) -> dict[Stratum, int]:
        if self.silent_selection == "uniform":
            rng = np.random.default_rng(seed_for(self.seed, "silent strata", latent))
            return uniform_counts(strata, self.silent, rng)
        shares = {Stratum.NEIGHBOUR: self.neighbour_share, Stratum.TOKEN: self.token_share}
        return allocate(strata, self.silent, shares)
