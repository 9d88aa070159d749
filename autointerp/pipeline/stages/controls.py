"""What the scorers say where they should find nothing: shuffled labels, and labels that say nothing or everything.

The random directions are a source of their own, and the token rule is a score of each latent (METHODS 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from autointerp.evidence import LatentEvidence
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.latent_evidence import evidence_of
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage
from autointerp.pipeline.stages.score import score_one
from autointerp.score import Score
from autointerp.scorers.base import Scorer
from autointerp.scorers.pattern import PatternScorer, score_prediction
from autointerp.store.models import Base, ControlRow
from autointerp.store.rows import control_row
from sae_core.hashing import seed_for
from sae_core.records import Side

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

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        pairs: list[list[int]] = spec.payload["pairs"]
        donors = sorted(donor for _, donor in pairs)
        explanations = [
            explanation
            for explanation in context.store.explanations(context.run_id, spec.source, donors)
            if explanation.failure is None and explanation.side == "input"
        ]
        judges = [scorer for scorer in context.scorers if scorer.judges_explanation]
        rows: list[Base] = []
        for done, (latent, donor) in enumerate(pairs, start=1):
            evidence = evidence_of(context, spec.source, latent)
            for explanation in explanations:
                if explanation.latent != donor:
                    continue
                borrowed = explanation.model_copy(update={"latent": latent})
                scores = [score_one(scorer, borrowed, evidence) for scorer in judges]
                rows += [control_row(context.run_id, spec.source, SHUFFLED, score) for score in scores]
            rows += [
                control_row(context.run_id, spec.source, kind, score)
                for kind, score in null_answers(evidence, judges).items()
            ]
            progress(done)
        return ChunkResult(rows)


def shuffled_pairs(context: RunContext, source: str) -> list[list[int]]:
    """``[latent, donor]``: labelled latents (all, or a random ``shuffled_latents``), each with another one's label."""
    labelled = sorted(
        {
            e.latent
            for e in context.store.explanations(context.run_id, source)
            if e.failure is None and e.side == "input"
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


def null_answers(evidence: LatentEvidence, judges: Sequence[Scorer]) -> dict[str, Score]:
    """The scores of "nothing" and "everything" on the very windows on which the labels are counted."""
    pool = evidence.store.pool(Side.SCORE)
    skips = any(isinstance(judge, PatternScorer) and judge.skip_repeated for judge in judges)
    shown = evidence.store.pool(Side.EXPLAIN) if skips else None
    answers: dict[str, Literal["nothing", "everything"]] = {NULL_NOTHING: "nothing", NULL_EVERYTHING: "everything"}
    return {
        kind: Score(
            latent=evidence.latent,
            scorer="counted",
            values=score_prediction(answer, evidence.latent, pool, shown=shown),
        )
        for kind, answer in answers.items()
    }
