"""Reviews a latent's label, and scores an edited one as the run scored its own, on windows that nobody has been shown."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import numpy as np
from sqlalchemy.orm import Session

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind, LatentStatus
from autointerp.imports.label_line import clean_label
from autointerp.llm.asking import LLMs
from autointerp.pipeline.asking import over_latents
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.latent_evidence import evidence_of
from autointerp.pipeline.natural_rate.estimates import estimate_of_edit
from autointerp.pipeline.natural_rate.labels import estimated_judge
from autointerp.pipeline.stages.score import score_one
from autointerp.report.figures import share_text
from autointerp.review.effective import EffectiveLabel, effective
from autointerp.review.recording import Action, Review, human_explainer, record_review, reviews
from autointerp.review.seen import SeenWindows, seen_before
from autointerp.review.shown_steering import windows_shown
from autointerp.score import Score
from autointerp.scorers.base import Scorer
from autointerp.store.rows import score_row, verdict_rows
from sae_core.errors import InputError, StoreError
from sae_core.records import Side


@dataclass(frozen=True, slots=True)
class ReviewOutcome:
    """What became of a latent's label."""

    review: Review
    """The word that was kept."""
    label: EffectiveLabel
    """The label as it is now."""
    scores: tuple[Score, ...]
    """Scores of an edited text, on unseen windows; empty for other reviews and where the run has no judge."""
    num_seen: int
    """Windows of the latent that a person may have seen and that were therefore not scored; 0 but for an edit."""

    @property
    def sentence(self) -> str:
        """What happened, for a person."""
        name = f"Latent {self.label.latent}"
        if self.review.action == "reject":
            return f"{name} has no label now: {self.label.failure_message}."
        if self.review.action == "accept":
            return f"{name} keeps its label “{self.label.text}”, accepted by {self.review.who_and_when}."
        said = f"{name} is labelled “{self.label.text}” now, edited by {self.review.who_and_when}"
        if not self.scores:
            return f"{said}; the run has no scorer that could judge it."
        figures = []
        for score in self.scores:
            value = score.values.get(f"{score.scorer}_score")
            if score.failure is not None:
                figures.append(f"{score.scorer} failed ({score.failure.message})")
            elif isinstance(value, (int, float)):
                figures.append(f"{score.scorer} {share_text(float(value))}")
        return f"{said}; on windows that nobody was shown ({self.num_seen} were left out): {', '.join(figures)}."


def review_latent(
    context: RunContext, source: str, latent: int, action: Action, text: str | None, by: str, note: str | None = None
) -> ReviewOutcome:
    """Keeps a person's word on a label; an edit is scored with the run's judges of labels.

    Where scoring is cut off, the same command again goes on with it. Errors: StoreError for a latent without a label
    row, InputError, and what stops a run (EndpointError, BudgetError): the review is kept then.
    """
    if context.source(source).control:
        raise InputError(f"{source!r} is a control of random directions: review the labels of the coder beside it.")
    rows = context.store.labels(context.run_id, source, [latent])
    if not rows:
        raise StoreError(
            f"latent {latent} of {source!r} has no label row in the run {context.run_id}: review latents that it labels, after "
            "its end."
        )
    row = rows[0]
    before = reviews(context.store, context.run_id, source, [latent])
    if row.status == LatentStatus.DEAD.value:
        raise InputError(f"latent {latent} of {source!r} never fires, so there is nothing to say of its label.")
    if action != "edit" and row.text is None and not any(review.action == "edit" for review in before):
        raise InputError(
            f"latent {latent} of {source!r} has no label to {action} (its status is {row.status}): give it one with an edit."
        )
    last = before[-1] if before else None
    same = (action, clean_label(text or ""), clean_label(by))
    if last is None or action != "edit" or (last.action, last.text, last.by) != same:
        last = record_review(context.store, context.run_id, source, latent, action, text, by, note)
        before.append(last)
    label = effective(before, row)
    if action != "edit":
        return ReviewOutcome(last, label, (), 0)
    explainer = human_explainer(sum(review.action == "edit" for review in before))
    scores, num_seen = score_edit(context, source, latent, explainer)
    return ReviewOutcome(last, label, tuple(scores), num_seen)


def score_edit(context: RunContext, source: str, latent: int, explainer: str) -> tuple[list[Score], int]:
    """The scores of a person's text and how many windows were left out as seen; those that are stored are not made again.

    What is left of the uniform sample once the strongest windows, which reports print, are taken out is weaker than the
    whole: such a score is no better than one of a label that nobody edited.
    """
    explanation = next(
        found
        for found in context.store.explanations(context.run_id, source, [latent])
        if found.explainer == explainer and found.side == "input"
    )
    stored = [s for s in context.store.scores(context.run_id, source, [latent]) if s.explainer == explainer]
    # what the latent does was judged once, on texts that people may have read since
    judges = [
        scorer
        for scorer in context.scorers
        if scorer.judges_explanation and scorer.sample is None and scorer.can_judge(explanation)
    ]
    missing = [scorer for scorer in judges if scorer.kind not in {score.scorer for score in stored}]
    evidence = evidence_of(context, source, latent)
    seen = seen_before(context.store, context.run_id, source, latent, explainer, evidence.store)
    seen = replace(seen, displayed=seen.displayed | windows_shown(context, source, latent))
    if missing:
        excluded = evidence.excluded | seen.places
        made = _score(context, source, missing, explanation, replace(evidence, excluded=excluded), seen)
        judge = estimated_judge(context)
        judged = [score for score in made if judge is not None and score.scorer == judge.kind]
        estimates = [estimate_of_edit(context, source, score) for score in judged]
        with context.store.writing() as connection, Session(bind=connection) as session:
            session.add_all(score_row(context.run_id, source, score) for score in made)
            session.add_all(verdict_rows(context.run_id, source, made))
            session.add_all(row for row in estimates if row is not None)
            session.flush()
        stored += made
    order = {scorer.kind: number for number, scorer in enumerate(judges)}
    return sorted(stored, key=lambda score: order.get(score.scorer, len(order))), len(seen.places)


def _score(
    context: RunContext,
    source: str,
    scorers: list[Scorer],
    explanation: Explanation,
    evidence: LatentEvidence,
    seen: SeenWindows,
) -> list[Score]:
    firing, unseen = _firing_windows(evidence)
    if not unseen:
        failure = Failure(
            kind=FailureKind.TOO_FEW_WINDOWS,
            message=f"none of the {firing} activating windows of the score side is unseen: {len(seen.judged)} windows of it "
            f"were judged and {len(seen.displayed)} stand in reports",
        )
        return [
            Score(latent=evidence.latent, scorer=scorer.kind, explainer=explanation.explainer, failure=failure)
            for scorer in scorers
        ]

    async def work(item: LatentEvidence, llms: LLMs) -> list[Score]:
        return await asyncio.gather(*(score_one(scorer, explanation, item, llms) for scorer in scorers))

    asks = any(scorer.llm_needs() for scorer in scorers)
    return over_latents(context, source, [evidence], work, lambda done: None, asks=asks)


def _firing_windows(evidence: LatentEvidence) -> tuple[int, int]:
    """Activating windows of the score side that are stored, and those of them that nobody has seen.

    Exemplars beside the pool need no look: all of them stand in reports.
    """
    pool = evidence.store.pool(Side.SCORE)
    rows = np.unique(pool.activations(evidence.latent)[0])
    unseen = sum((int(pool.context[row]), int(pool.position[row])) not in evidence.excluded for row in rows)
    return len(rows), unseen
