"""Which windows does the label fit: the latent's or those of its nearest decoder neighbours (METHODS 3)?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from autointerp.evidence import EvidenceRequest, LatentEvidence, LensRequest
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.judging.batching import deal
from autointerp.judging.choices import Choice, chosen_verdicts, judge_choices, spread
from autointerp.judging.outcome import accuracy_score, missing_label, too_few
from autointerp.judging.supposed import NOT_ASKED, SupposedLabel
from autointerp.llm.asking import NO_LLMS, LLMNeed, LLMs
from autointerp.planning.planned import (
    HEADING_TOKENS,
    ITEM_TOKENS,
    LABEL_KEY_TOKENS,
    PlannedCalls,
    PlanSizes,
    num_calls,
    planned_calls,
)
from autointerp.prompting.prompt import load_prompt
from autointerp.prompting.quoting import json_text, quote_windows
from autointerp.sampling.firing import fires_in, sample_firing
from autointerp.sampling.scorable import kept_windows
from autointerp.sampling.window import ShownWindow, Stratum, of_pool
from autointerp.score import Score, ScoreValue
from autointerp.scorers.base import Scorer
from sae_core.hashing import seed_for

_NEIGHBOURS = 3
"""Neighbours beside the latent; with it as many sets as the prompt names."""


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """What is asked about a label."""

    choices: list[Choice]
    """The questions."""
    values: dict[str, ScoreValue]
    """Known of the score before anybody is asked."""


class DiscriminationScorer(Scorer):
    """Share of questions in which a judge finds the latent's windows among those of its neighbours, by the label."""

    CHANCE: ClassVar[float | None] = 0.25

    kind: Literal["discrimination"] = "discrimination"
    """Name in the config file."""
    endpoint: str = ""
    """Name of the judge's endpoint; "" for the first one."""
    items: int = Field(default=8, ge=1)
    """Questions; no window stands in two."""
    windows: int = Field(default=3, ge=1)
    """Windows of each of the four sets of a question."""
    per_call: int = Field(default=4, ge=1)
    """Questions in one call."""
    context_tokens: int = Field(default=0, ge=0)
    """Tokens before each window that are shown with it, of those that the store keeps."""
    min_items: int = Field(default=3, ge=1)
    """Questions that must be there; a neighbour with too few windows for them is passed over for the next one."""
    seed: int = 0
    """Seed of the sample of windows and of their order."""

    def needs(self) -> list[EvidenceRequest]:
        """The latent's neighbours."""
        return [LensRequest()]

    def llm_needs(self) -> list[LLMNeed]:
        """One endpoint."""
        return [LLMNeed(self.endpoint, prompts=(self.kind,))]

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """As many calls as the questions take."""
        calls = num_calls(self.items, 1, self.per_call)
        questions = self.items / calls
        one = sizes.windows(self.windows, context_tokens=self.context_tokens) + HEADING_TOKENS
        call = planned_calls(
            load_prompt("discrimination"),
            self.kind,
            self.endpoint,
            calls=calls,
            filled=sizes.label_tokens + questions * (_NEIGHBOURS + 1) * one,
            answer=ITEM_TOKENS * questions + LABEL_KEY_TOKENS,
            most_answer=6 * math.ceil(questions) + 40,
        )
        return [call]

    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        """Judges one label on the scored side.

        Failures: ``no_explanation``, ``no_evidence`` (the lens stage did not run), ``dead``, ``too_few_windows``, or the
        judge's own.
        """
        latent = evidence.latent
        missing = missing_label(self.kind, latent, explanation)
        if explanation is None or missing is not None:
            assert missing is not None
            return missing
        rng = np.random.default_rng(seed_for(self.seed, "discrimination", latent))
        drawn = self._drawn(explanation, evidence, rng)
        if isinstance(drawn, Score):
            return drawn
        llm = llms.of(self.endpoint, self.kind)
        calls = deal([[choice] for choice in drawn.choices], self.per_call, rng)
        label = json_text(explanation.text)

        def values_of(call: Sequence[Choice]) -> dict[str, Any]:
            questions = "\n".join(
                f"Question {question}, set {number}\n"
                + quote_windows(windows, evidence.store.pieces, context_tokens=self.context_tokens).block
                for question, choice in enumerate(call, 1)
                for number, windows in enumerate(choice.sets, 1)
            )
            return {"label": label, "questions": questions, "count": len(call)}

        verdicts, asked = await judge_choices(llm, load_prompt("discrimination"), "sets", calls, values_of)
        return accuracy_score(self.kind, latent, explanation, verdicts, asked, llm.model, drawn.values)

    def scores_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
        """See the base class."""
        if not labels:
            return []
        rng = np.random.default_rng(seed_for(self.seed, "discrimination", evidence.latent))
        drawn = self._drawn(labels[0].explanation, evidence, rng)
        if isinstance(drawn, Score):
            return [drawn] * len(labels)
        scores = []
        for label in labels:
            verdicts = chosen_verdicts(drawn.choices, label.chosen(drawn.choices))
            explanation = label.explanation
            scores.append(
                accuracy_score(self.kind, evidence.latent, explanation, verdicts, NOT_ASKED, "", drawn.values)
            )
        return scores

    def _drawn(self, explanation: Explanation, evidence: LatentEvidence, rng: np.random.Generator) -> _Drawn | Score:
        """The questions, or the failed score of a latent with too few windows or neighbours."""
        latent = evidence.latent
        if evidence.lens is None:
            failure = Failure(kind=FailureKind.NO_EVIDENCE, message="the lens stage left no decoder neighbours")
            return Score(latent=latent, scorer=self.kind, explainer=explanation.explainer, failure=failure)
        own = sample_firing(evidence, evidence.scored_side, self.items * self.windows, self.seed)
        neighbours = self._neighbours(evidence)
        num_items = min(len(windows) // self.windows for windows in (own, *neighbours.values()))
        values: dict[str, ScoreValue] = {
            "discrimination_chance": 1 / (_NEIGHBOURS + 1),
            "discrimination_neighbours": tuple(str(neighbour) for neighbour in neighbours),
            "discrimination_share_skipped": 1 - float(kept_windows(evidence, evidence.scored_side).mean()),
        }
        if num_items < self.min_items or len(neighbours) < _NEIGHBOURS:
            need = self.min_items * self.windows
            found = (
                f"{len(own)} activating windows may be judged, and {len(neighbours)} neighbours have {need} windows in "
                f"which the latent is silent; {need} windows and {_NEIGHBOURS} neighbours are needed"
            )
            return too_few(self.kind, evidence, explanation, found, values)
        choices = [
            self._choice([own, *neighbours.values()], item, right, rng)
            for item, right in enumerate(spread(min(self.items, num_items), _NEIGHBOURS + 1, rng))
        ]
        return _Drawn(choices, values)

    def _neighbours(self, evidence: LatentEvidence) -> dict[int, list[ShownWindow]]:
        """Windows in which a neighbour fires and the latent does not, nearest neighbour first; no window stands for two."""
        assert evidence.lens is not None
        pool = evidence.store.pool(evidence.scored_side)
        free = kept_windows(evidence, evidence.scored_side) & ~fires_in(pool, evidence.latent)
        found: dict[int, list[ShownWindow]] = {}
        for neighbour in (int(n) for n in evidence.lens.neighbours[evidence.latent] if n >= 0):
            rows: NDArray[np.intp] = np.flatnonzero(free & fires_in(pool, neighbour))
            if len(rows) < self.min_items * self.windows:
                continue
            rng = np.random.default_rng(seed_for(self.seed, "neighbour", evidence.latent, neighbour))
            drawn = rng.permutation(rows)[: self.items * self.windows]
            free[drawn] = False
            found[neighbour] = [of_pool(pool, int(row), neighbour, Stratum.NEIGHBOUR) for row in drawn]
            if len(found) == _NEIGHBOURS:
                break
        return found

    def _choice(
        self, groups: Sequence[Sequence[ShownWindow]], item: int, right: int, rng: np.random.Generator
    ) -> Choice:
        """One question: the ``item``-th windows of each group (the latent's is the first), its own set at ``right``."""
        own, *others = [tuple(group[item * self.windows : (item + 1) * self.windows]) for group in groups]
        sets = [others[i] for i in rng.permutation(len(others))]
        sets.insert(right - 1, own)
        company = tuple(window.id for windows in (own[1:], *others) for window in windows)
        return Choice(tuple(sets), right, own[0], company)
