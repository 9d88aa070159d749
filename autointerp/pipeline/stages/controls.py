"""What the scorers say where they should find nothing: shuffled labels, and labels that say nothing or everything.

The random directions are a source of their own, and the token rule is a score of each latent (METHODS 6).
"""

from __future__ import annotations

import numpy as np

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.llm.asking import LLMs
from autointerp.pipeline.asking import chunks_at_once, over_latents
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.latent_evidence import evidence_of
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage
from autointerp.pipeline.stages.score import score_latent
from autointerp.score import Score, ScoreValue
from autointerp.scorers.base import Scorer
from autointerp.store.models import Base, ControlRow
from autointerp.store.rows import control_row
from sae_core.hashing import seed_for

SHUFFLED = "shuffled"
NULL_NOTHING = "null_nothing"
NULL_EVERYTHING = "null_everything"


class Controls(Stage):
    """Explanations to scores under another latent's label, and to the scores of empty answers."""

    name = "controls"
    queue = "control"
    unit = "latents"
    writes = (ControlRow,)
    after_all = ("explain", "score")
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        size = context.config.chunk_latents
        chunks: list[ChunkSpec] = []
        for source in context.sources:
            if source.control:
                continue
            pairs = shuffled_pairs(context, source.name)
            for ordinal, start in enumerate(range(0, len(pairs), size)):
                part = pairs[start : start + size]
                chunks.append(ChunkSpec(ordinal, source.name, {"pairs": part}, len(part)))
        return chunks

    def at_once(self, context: RunContext) -> int:
        return chunks_at_once(context.scorers)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        donor_of: dict[int, int] = {int(latent): int(donor) for latent, donor in spec.payload["pairs"]}
        given: dict[int, list[Explanation]] = {}
        kinds = _kinds(context)
        for explanation in context.store.explanations(context.run_id, spec.source, sorted(donor_of.values())):
            if explanation.failure is None and explanation.side == "input" and explanation.explainer in kinds:
                given.setdefault(explanation.latent, []).append(explanation)
        scores: dict[int, list[Score]] = {latent: [] for latent in donor_of}
        for asks in (False, True):
            judges = [s for s in context.scorers if s.judges_explanation and bool(s.llm_needs()) is asks]
            if not judges:
                continue

            async def work(evidence: LatentEvidence, llms: LLMs, chosen: list[Scorer] = judges) -> list[Score]:
                donor = donor_of[evidence.latent]
                borrowed = [e.model_copy(update={"latent": evidence.latent}) for e in given.get(donor, [])]
                return await score_latent(chosen, borrowed, evidence, llms)

            evidence = (evidence_of(context, spec.source, latent) for latent in donor_of)
            for score in over_latents(context, spec.source, evidence, work, progress, asks=asks):
                scores[score.latent].append(score)
        rows: list[Base] = []
        for latent, own in scores.items():
            rows += [control_row(context.run_id, spec.source, SHUFFLED, score) for score in own]
            counted = next((score for score in own if "always_yes_precision" in score.values), None)
            if counted is not None:
                answers = null_answers(latent, counted)
                rows += [control_row(context.run_id, spec.source, kind, score) for kind, score in answers.items()]
        return ChunkResult(rows)


def shuffled_pairs(context: RunContext, source: str) -> list[list[int]]:
    """``[latent, donor]``: labelled latents (all, or a random ``shuffled_latents``), each with another one's label."""
    kinds = _kinds(context)
    labelled = sorted(
        {
            e.latent
            for e in context.store.explanations(context.run_id, source)
            if e.failure is None and e.side == "input" and e.explainer in kinds
        }
    )
    if len(labelled) < 2:
        return []
    rng = np.random.default_rng(seed_for(context.config.seed, "shuffled labels", source))
    count = min(len(labelled), max(context.config.controls.shuffled_latents, 2))
    chosen = rng.permutation(labelled)[:count].tolist()
    # a cycle through a random order is uniform among its kind and leaves no latent with its own label
    donors = [*chosen[1:], chosen[0]]
    return sorted([int(latent), int(donor)] for latent, donor in zip(chosen, donors, strict=True))


def _kinds(context: RunContext) -> set[str]:
    """The run's explainers; a person's text, which may be there when a part of a run is done again, is none of them."""
    return {explainer.kind for explainer in context.explainers}


def null_answers(latent: int, counted: Score) -> dict[str, Score]:
    """The scores of "nothing" and "everything" on the windows on which ``counted`` was counted.

    Both follow from how often the latent fires there: precision pi and F1 2 pi / (1 + pi) for "everything" (METHODS 4).
    """
    firing = counted.values.get("num_windows_firing_scored") or 0
    rate, f1 = counted.values.get("always_yes_precision"), counted.values.get("always_yes_f1")
    half = 0.5 if firing and isinstance(rate, float) and rate < 1 else None
    values: dict[str, dict[str, ScoreValue]] = {
        NULL_NOTHING: {"precision": None, "recall": 0.0 if firing else None, "f1": 0.0 if firing else None},
        NULL_EVERYTHING: {"precision": rate, "recall": 1.0 if firing else None, "f1": f1},
    }
    return {
        kind: Score(latent=latent, scorer="counted", values=own | {"balanced_accuracy": half})
        for kind, own in values.items()
    }
