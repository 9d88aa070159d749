"""Does the label fit the window? Asked of activating and non-activating windows, several a call (METHODS 3)."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from autointerp.evidence import EvidenceRequest, LatentEvidence, LensRequest
from autointerp.explanation import Explanation
from autointerp.judging.batching import deal
from autointerp.judging.outcome import missing_label, too_few, two_sided_score
from autointerp.judging.questions import Question, judge_questions
from autointerp.judging.verdicts import Verdicts
from autointerp.judging.window_judge import WindowJudge
from autointerp.llm.asking import NO_LLMS, LLMs
from autointerp.planning.planned import PlannedCalls, PlanSizes
from autointerp.prompting.prompt import load_prompt
from autointerp.sampling.all_sides import without_sides
from autointerp.sampling.firing import sample_firing
from autointerp.sampling.quantiles import sample_quantiles
from autointerp.sampling.silent import SilentStrata, allocate, sample_silent, silent_strata, uniform_counts
from autointerp.sampling.window import ShownWindow, Stratum
from autointerp.score import Score, ScoreValue
from sae_core.hashing import seed_for


class DetectionScorer(WindowJudge):
    """Balanced accuracy of a judge that reads the label and tells activating windows from others."""

    CHANCE: ClassVar[float | None] = 0.5

    kind: Literal["detection"] = "detection"
    """Name in the config file."""
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
        side, latent = evidence.scored_side, evidence.latent
        strata = silent_strata(evidence, side)
        firing = self._firing(evidence)
        silent = sample_silent(strata, evidence, self._counts(strata, latent), self.seed)
        values: dict[str, ScoreValue] = {"detection_share_skipped": strata.share_skipped}
        if not self.leak_free:
            values["detection_leak"] = 1
        if min(len(firing), len(silent)) < self.min_windows:
            found = (
                f"{len(firing)} activating and {len(silent)} non-activating windows may be judged, "
                f"{self.min_windows} of each are needed"
            )
            return too_few(self.kind, evidence, explanation, found, values)

        questions = [Question(window, window.fires) for window in (*firing, *silent)]
        rng = np.random.default_rng(seed_for(self.seed, "detection calls", latent))
        calls = deal([[question] for question in questions], self.per_call, rng)
        llm = llms.of(self.endpoint, self.kind)
        found_verdicts, asked = await judge_questions(
            llm,
            load_prompt("detection"),
            explanation.text,
            calls,
            evidence.store.pieces,
            context_tokens=self.context_tokens,
            logprobs=self.wants_logprobs(llm),
        )
        verdicts = Verdicts(tuple(found_verdicts[question] for question in questions), strata.weights)
        values["detection_firing"] = verdicts.num_judged_of(truth=True)
        values["detection_silent"] = verdicts.num_judged_of(truth=False)
        return two_sided_score(self.kind, latent, explanation, verdicts, asked, llm.model, values)

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
