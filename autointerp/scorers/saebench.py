"""The automated interpretability score of SAEBench: fourteen windows in one question, the share told right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.judging.batching import Asked
from autointerp.judging.outcome import accuracy_score, missing_label, too_few
from autointerp.judging.questions import Question, Said, answered, judge_questions
from autointerp.judging.supposed import NOT_ASKED, SupposedLabel
from autointerp.judging.verdicts import Verdict, Verdicts
from autointerp.llm.asking import NO_LLMS, LLMNeed, LLMs
from autointerp.planning.planned import ITEM_TOKENS, LABEL_KEY_TOKENS, PlannedCalls, PlanSizes, planned_calls
from autointerp.prompting.prompt import load_prompt
from autointerp.sampling.all_sides import without_sides
from autointerp.sampling.firing import fires_in, firing_rows
from autointerp.sampling.importance import importance_weighted
from autointerp.sampling.scorable import kept_exemplars, kept_windows
from autointerp.sampling.window import ShownWindow, Stratum, of_exemplar, of_pool
from autointerp.score import Score, ScoreValue
from autointerp.scorers.base import Scorer
from sae_core.hashing import seed_for
from sae_core.records import Origin

_MOST_OF_POOL = 2_000
"""Activating windows of the pool that are looked at, a uniform sample: enough for a handful by weight."""


class SaebenchScorer(Scorer):
    """Share of windows that a judge tells right, among few strong ones and more random ones, all in one call.

    For comparison with published scores only: a label that fits nothing gets 10/14, and random windows count as silent
    whatever the latent does in them (their number stands in ``saebench_random_firing``).
    """

    kind: Literal["saebench"] = "saebench"
    """Name in the config file."""
    endpoint: str = ""
    """Name of the judge's endpoint; "" for the first one."""
    top: int = Field(default=2, ge=1)
    """Strong windows that are judged."""
    top_from: int = Field(default=5, ge=1)
    """Strongest windows of the side from which these are drawn at random: the score side's share of the twelve that
    SAEBench parts between explaining and scoring."""
    weighted: int = Field(default=2, ge=0)
    """Windows drawn in proportion to their squared activations, as far as these lie below the strongest windows'."""
    random: int = Field(default=10, ge=1)
    """Windows drawn from all of the side, whether or not the latent fires in them."""
    context_tokens: int = Field(default=0, ge=0)
    """Tokens before each window that are shown with it."""
    leak_free: bool = True
    """Whether only windows of the scored side are judged; without it all sides are drawn from, also what was explained."""
    seed: int = 0
    """Seed of the sample of windows and of their order."""

    def llm_needs(self) -> list[LLMNeed]:
        """One endpoint."""
        return [LLMNeed(self.endpoint, prompts=("detection",))]

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """One call."""
        count = self.top + self.weighted + self.random
        call = planned_calls(
            load_prompt("detection"),
            self.kind,
            self.endpoint,
            calls=1,
            filled=sizes.label_tokens + sizes.windows(count, context_tokens=self.context_tokens),
            answer=ITEM_TOKENS * count + LABEL_KEY_TOKENS,
            most_answer=6 * count + 40,
        )
        return [call]

    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        """Judges one label on the scored side. Failures: ``no_explanation``, ``dead``, ``too_few_windows``, or the judge's."""
        missing = missing_label(self.kind, evidence.latent, explanation)
        if explanation is None or missing is not None:
            assert missing is not None
            return missing
        if not self.leak_free:
            evidence = without_sides(evidence)
        rng = np.random.default_rng(seed_for(self.seed, "saebench", evidence.latent))
        drawn = self._drawn(explanation, evidence, rng)
        if isinstance(drawn, Score):
            return drawn
        call = [drawn[i] for i in rng.permutation(len(drawn))]
        llm = llms.of(self.endpoint, self.kind)
        said, asked = await judge_questions(
            llm,
            load_prompt("detection"),
            explanation.text,
            [call],
            evidence.store.pieces,
            context_tokens=self.context_tokens,
        )
        return self._counted(explanation, drawn, said, asked, llm.model)

    def scores_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
        """See the base class. A perfect label holds in random windows in which the latent fires, too, and is told wrong there."""
        if not labels:
            return []
        if not self.leak_free:
            evidence = without_sides(evidence)
        rng = np.random.default_rng(seed_for(self.seed, "saebench", evidence.latent))
        drawn = self._drawn(labels[0].explanation, evidence, rng)
        if isinstance(drawn, Score):
            return [drawn] * len(labels)
        return [
            self._counted(label.explanation, drawn, answered(drawn, label.answers(drawn)), NOT_ASKED, "")
            for label in labels
        ]

    def _drawn(
        self, explanation: Explanation, evidence: LatentEvidence, rng: np.random.Generator
    ) -> list[Question] | Score:
        """The questions of the one call, strong windows first, or the failed score of a latent with too few windows."""
        firing = self._firing(evidence, rng)
        random = self._random(evidence, {window.place for window in firing}, rng)
        if len(firing) < self.top + self.weighted or len(random) < self.random:
            found = (
                f"{len(firing)} activating and {len(random)} further windows may be judged, "
                f"{self.top + self.weighted} and {self.random} are needed"
            )
            return too_few(self.kind, evidence, explanation, found, self._leak())
        return [*(Question(window, True) for window in firing), *(Question(window, False) for window in random)]

    def _counted(
        self,
        explanation: Explanation,
        questions: Sequence[Question],
        said: Mapping[Question, Verdict],
        asked: Asked[Said],
        asked_model: str,
    ) -> Score:
        """The score of the answers."""
        verdicts = Verdicts(tuple(said[question] for question in questions))
        values = self._leak() | {
            "saebench_tpr": verdicts.tpr,
            "saebench_fpr": verdicts.fpr,
            "saebench_random_firing": sum(question.window.fires for question in questions if not question.truth),
            "saebench_never_yes": self.random / len(questions),
        }
        return accuracy_score(self.kind, explanation.latent, explanation, verdicts, asked, asked_model, values)

    def _leak(self) -> dict[str, ScoreValue]:
        return {} if self.leak_free else {"saebench_leak": 1}

    def _firing(self, evidence: LatentEvidence, rng: np.random.Generator) -> list[ShownWindow]:
        """The strong windows, then those drawn by weight; fewer where there are no more."""
        side, latent, special = evidence.scored_side, evidence.latent, evidence.store.pieces.special
        pool = evidence.store.pool(side)
        known: dict[tuple[int, int], ShownWindow] = {}
        for origin in (Origin.TOP, Origin.SAMPLED):
            stored = kept_exemplars(evidence, side, evidence.store.exemplars(latent, side, origin))
            for window in (of_exemplar(exemplar, special) for exemplar in stored):
                known.setdefault(window.place, window)
        for row in rng.permutation(firing_rows(evidence, side))[:_MOST_OF_POOL]:
            window = of_pool(pool, int(row), latent, Stratum.FIRING)
            known.setdefault(window.place, window)
        ranked = sorted(known.values(), key=lambda window: (-window.max_activation, window.place))
        strongest, rest = ranked[: self.top_from], ranked[self.top_from :]
        top = [strongest[i] for i in rng.permutation(len(strongest))[: self.top]]
        below = min((window.max_activation for window in strongest), default=0.0)
        drawn = importance_weighted(rest, self.weighted, rng, below=below)
        # a latent that fires equally strongly everywhere has too few below its strongest windows
        places = {window.place for window in drawn}
        others = [window for window in rest if window.place not in places]
        return [*top, *drawn, *importance_weighted(others, self.weighted - len(drawn), rng)]

    def _random(
        self, evidence: LatentEvidence, taken: set[tuple[int, int]], rng: np.random.Generator
    ) -> list[ShownWindow]:
        pool, latent = evidence.store.pool(evidence.scored_side), evidence.latent
        rows: NDArray[np.intp] = np.flatnonzero(kept_windows(evidence, evidence.scored_side))
        fires = fires_in(pool, latent)
        found: list[ShownWindow] = []
        for row in rng.permutation(rows)[: self.random + len(taken)].tolist():
            window = of_pool(pool, row, latent, Stratum.FIRING if fires[row] else Stratum.BULK)
            if window.place not in taken:
                found.append(window)
        return found[: self.random]
