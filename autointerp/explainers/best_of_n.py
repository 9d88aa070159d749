"""The best_of_n explainer: several drafts, compared on the choose side, so that the score side stays unseen (METHODS 2)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field, field_validator

from autointerp.components import parse_component
from autointerp.evidence import EvidenceRequest, LatentEvidence
from autointerp.explainers.base import Explainer
from autointerp.explainers.counted_llms import CountedLLMs
from autointerp.explainers.llm_explainer import LLMExplainer
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.llm.asking import NO_LLMS, LLMNeed, LLMs
from autointerp.planning.planned import PlannedCalls, PlanSizes
from autointerp.score import Score
from autointerp.scorers.base import Scorer
from autointerp.scorers.comparing import can_compare
from sae_core.records import Side

T = TypeVar("T")


class _Draft(NamedTuple):
    """A text that came up, once or several times."""

    explanation: Explanation
    """The first of its drafts."""
    times: int
    """How many drafts say it."""
    score: Score | None
    """Its score on the choose side; None where there was nothing to choose between."""


class BestOfNExplainer(Explainer):
    """Drafts of one explainer at a temperature; the one that a scorer likes best on the choose side becomes the explanation.

    ``payload``: ``drafts`` (texts with how often they came and their ``choose_score``), ``failed`` (drafts that are no label, by
    kind of failure), ``chosen_by`` (what decided).
    """

    kind: Literal["best_of_n"] = "best_of_n"
    """Name in the config file."""
    of: dict[str, Any] = Field(default={"kind": "max_activating"}, validate_default=True)
    """Table of the explainer that writes the drafts."""
    n: int = Field(default=4, ge=2, le=32)
    """Drafts."""
    temperature: float = Field(default=0.7, gt=0, le=2)
    """Sampling temperature of the drafts, whatever their table says."""
    scorer: dict[str, Any] = Field(default={"kind": "detection", "firing": 10, "silent": 10}, validate_default=True)
    """Table of the scorer that compares them on the choose side; its ``endpoint`` is the judge."""

    @field_validator("of")
    @classmethod
    def _drafting(cls, table: dict[str, Any]) -> dict[str, Any]:
        explainer = parse_component("explainers", table)
        if not isinstance(explainer, LLMExplainer) or explainer.rounds_of_tests or explainer.side != "input":
            raise ValueError(
                f"{explainer.kind!r} cannot write the drafts: give an explainer that asks a language model once about what the "
                "latent fires on, such as 'max_activating' or 'contrastive'"
            )
        if explainer.sample:
            raise ValueError(
                f"sample = {explainer.sample} is given, and best_of_n numbers the drafts itself: leave it out"
            )
        return explainer.model_dump(mode="json")

    @field_validator("scorer")
    @classmethod
    def _comparing(cls, table: dict[str, Any]) -> dict[str, Any]:
        scorer = parse_component("scorers", table)
        if not can_compare(scorer):
            raise ValueError(
                f"{scorer.kind!r} does not judge texts on the choose side: give a scorer that does, such as 'detection' or 'fuzz'"
            )
        return scorer.model_dump(mode="json")

    @property
    def _parts(self) -> tuple[LLMExplainer, Scorer]:
        explainer = parse_component("explainers", self.of)
        assert isinstance(explainer, LLMExplainer)
        return explainer, parse_component("scorers", self.scorer)

    def needs(self) -> list[EvidenceRequest]:
        """What the drafts and their comparison need."""
        explainer, scorer = self._parts
        return [*explainer.needs(), *scorer.needs()]

    def llm_needs(self) -> list[LLMNeed]:
        """What the drafts and their comparison need."""
        explainer, scorer = self._parts
        return [*explainer.llm_needs(), *scorer.llm_needs()]

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """The drafts, and a comparison of as many texts: fewer where drafts agree."""
        explainer, scorer = self._parts
        calls = [*explainer.planned(sizes), *scorer.planned(sizes)]
        return [replace(call, purpose=self.kind, calls=call.calls * self.n) for call in calls]

    async def explain(self, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Explanation:
        """The best draft; where none is a label, the failure that most of them have.

        Reads the explain side for the drafts and the choose side for their comparison.
        """
        explainer, scorer = self._parts
        counted = CountedLLMs(llms, self.kind)
        made = await _all(
            explainer.model_copy(update={"temperature": self.temperature, "sample": i}).explain(evidence, counted)
            for i in range(self.n)
        )
        times = Counter(draft.text for draft in made if draft.failure is None)
        unlike = {draft.text: draft for draft in reversed(made) if draft.failure is None}
        texts = [unlike[text] for text in times]
        failed = [draft.failure for draft in made if draft.failure is not None]
        scores: list[Score | None] = [None] * len(texts)
        if len(texts) > 1:
            on_choose = replace(evidence, scored_side=Side.CHOOSE)
            scores = list(await _all(scorer.score(text, on_choose, counted) for text in texts))
        drafts = [_Draft(text, times[text.text], score) for text, score in zip(texts, scores, strict=True)]
        best, chosen_by = _best(drafts, scorer)
        base = made[0] if best is None else best.explanation
        return base.model_copy(
            update={
                "explainer": self.kind,
                "failure": _common_failure(failed, self.n) if best is None else None,
                "payload": {
                    **base.payload,
                    "drafts": [_told(draft, scorer) for draft in drafts],
                    "failed": dict(Counter(failure.kind.value for failure in failed)),
                    "chosen_by": chosen_by,
                },
                "input_tokens": counted.usage.input_tokens,
                "output_tokens": counted.usage.output_tokens,
                "cost_usd": counted.usage.cost_usd or 0.0,
            }
        )


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all, asked together. Errors: the first one's, once the others have ended and are paid for."""
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    results: list[T] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results


def _value(draft: _Draft, scorer: Scorer) -> float | None:
    """The score that compares drafts; None where there is none."""
    if draft.score is None or draft.score.failure is not None:
        return None
    value = draft.score.values.get(scorer.headline)
    return float(value) if isinstance(value, (int, float)) else None


def _best(drafts: list[_Draft], scorer: Scorer) -> tuple[_Draft | None, str]:
    """The draft to take, and what decided: the score, on ties the more frequent text, then the earlier one."""
    if not drafts:
        return None, "nothing"
    scored = [
        (value, draft.times, -i) for i, draft in enumerate(drafts) if (value := _value(draft, scorer)) is not None
    ]
    if scored:
        return drafts[-max(scored)[2]], scorer.headline
    frequent = max(range(len(drafts)), key=lambda i: (drafts[i].times, -i))
    if len(drafts) == 1:
        return drafts[0], "all drafts agree"
    score = drafts[frequent].score
    failure = None if score is None else score.failure
    reason = f"{failure.kind.value}: {failure.message}" if failure else f"{scorer.headline} is not defined"
    return drafts[frequent], f"how often it came, as no draft could be scored ({reason})"


def _told(draft: _Draft, scorer: Scorer) -> dict[str, Any]:
    """A draft as it is kept."""
    failure = draft.score.failure if draft.score is not None else None
    told: dict[str, Any] = {
        "text": draft.explanation.text,
        "times": draft.times,
        "choose_score": _value(draft, scorer),
    }
    return told | ({"failure": failure.model_dump(mode="json")} if failure is not None else {})


def _common_failure(failures: list[Failure], n: int) -> Failure:
    """Why none of the drafts is a label: the commonest reason, the first one's words."""
    kind, times = Counter(failure.kind for failure in failures).most_common(1)[0]
    message = next(failure.message for failure in failures if failure.kind is kind)
    if kind in (FailureKind.DEAD, FailureKind.TOO_FEW_WINDOWS):
        return Failure(kind=kind, message=message)
    return Failure(kind=kind, message=f"none of {n} drafts is a label; {times} of them: {message}")
