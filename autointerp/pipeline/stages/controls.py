"""What the scorers say where they should find nothing: shuffled labels, and labels that say nothing or everything.

The random directions are a source of their own, and the token rule is a score of each latent (METHODS 6).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.judging.null_labels import FITS_EVERYTHING, FITS_NOTHING, IS_EMPTY, null_labels
from autointerp.judging.tally import Tally
from autointerp.llm.asking import LLMs
from autointerp.pipeline.asking import chunks_at_once, over_latents
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.control_kinds import NULL_EMPTY, NULL_EVERYTHING, NULL_NOTHING, SHUFFLED, VERDICTS
from autointerp.pipeline.latent_evidence import evidence_of
from autointerp.pipeline.natural_rate.labels import estimated_judge
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage
from autointerp.pipeline.stages.score import score_latent
from autointerp.pipeline.steered_texts import text_sample, with_steered
from autointerp.pipeline.written_texts import with_written
from autointerp.score import Score, ScoreValue
from autointerp.scorers.base import Scorer
from autointerp.scorers.comparing import ANY_TEXT
from autointerp.store.models import Base, ControlRow
from autointerp.store.rows import control_row
from sae_core.hashing import seed_for

_NULL = "null_labels"
"""In the payload of a chunk of null labels."""
_SAMPLE = "sample"
"""In the payload of a chunk of shuffled labels for the scorers that look at a sample of the latents only."""


class Controls(Stage):
    """Explanations to scores under another latent's label, and to the scores of empty answers."""

    name = "controls"
    queue = "control"
    unit = "latents"
    writes = (ControlRow,)
    after_all = ("explain", "score", "try_shuffled")
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        shuffled = shuffled_chunks(context)
        shuffled += null_chunks(context, Counter(chunk.source for chunk in shuffled))
        return shuffled + sample_chunks(context, Counter(chunk.source for chunk in shuffled))

    def at_once(self, context: RunContext) -> int:
        return chunks_at_once(context.scorers)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        if spec.payload.get(_NULL):
            return ChunkResult(null_rows(context, spec, progress))
        donor_of: dict[int, int] = {int(latent): int(donor) for latent, donor in spec.payload["pairs"]}
        sampled = bool(spec.payload.get(_SAMPLE))
        given: dict[int, list[Explanation]] = {}
        kinds = _kinds(context)
        for explanation in context.store.explanations(context.run_id, spec.source, sorted(donor_of.values())):
            judged = sampled or explanation.side == "input"
            if explanation.failure is None and judged and explanation.explainer in kinds:
                given.setdefault(explanation.latent, []).append(explanation)
        scores: dict[int, list[Score]] = {latent: [] for latent in donor_of}
        for asks in (False, True):
            judges = [s for s in shuffled_judges(context, sampled) if bool(s.llm_needs()) is asks]
            if not judges:
                continue

            async def work(evidence: LatentEvidence, llms: LLMs, chosen: list[Scorer] = judges) -> list[Score]:
                donor = donor_of[evidence.latent]
                borrowed = [e.model_copy(update={"latent": evidence.latent}) for e in given.get(donor, [])]
                return await score_latent(chosen, borrowed, evidence, llms)

            evidence = with_written(
                context, spec, "shuffled", (evidence_of(context, spec.source, latent) for latent in donor_of)
            )
            evidence = with_steered(context, spec.source, evidence) if sampled else evidence
            for score in over_latents(context, spec.source, evidence, work, progress, asks=asks):
                scores[score.latent].append(score)
        rows: list[Base] = []
        for latent, own in scores.items():
            rows += [_shuffled_row(context, spec.source, score) for score in own]
            counted = next((score for score in own if "always_yes_precision" in score.values), None)
            if counted is not None:
                answers = null_answers(latent, counted)
                rows += [control_row(context.run_id, spec.source, kind, score) for kind, score in answers.items()]
        return ChunkResult(rows)


def shuffled_chunks(context: RunContext) -> list[ChunkSpec]:
    """The latents of every source that are scored under another one's label, in chunks; once all explanations are there."""
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


def shuffled_judges(context: RunContext, sampled: bool) -> list[Scorer]:
    """The scorers that are asked about shuffled labels: of a sample of the latents, or of those that ``shuffled_pairs`` draws."""
    return [
        scorer
        for scorer in context.scorers
        if scorer.judges_explanation and not scorer.COMPARES_LABELS and (scorer.sample is not None) is sampled
    ]


def sample_chunks(context: RunContext, taken: Mapping[str, int]) -> list[ChunkSpec]:
    """The latents of texts written under steering, each with another one's label, after ``taken`` chunks of the source."""
    if not shuffled_judges(context, True):
        return []
    size = context.config.chunk_latents
    chunks = []
    for source in context.sources:
        if source.control:
            continue
        sample = sorted(set(labelled_latents(context, source.name)) & text_sample(context, source.name))
        pairs = dealt_pairs(sample, seed_for(context.config.seed, "shuffled labels of the sample", source.name))
        for ordinal, start in enumerate(range(0, len(pairs), size), taken.get(source.name, 0)):
            part = pairs[start : start + size]
            chunks.append(ChunkSpec(ordinal, source.name, {"pairs": part, _SAMPLE: True}, len(part)))
    return chunks


def null_chunks(context: RunContext, taken: Mapping[str, int]) -> list[ChunkSpec]:
    """Random labelled latents of every source on which judges are asked about null labels, after ``taken`` chunks of the source."""
    if not null_judges(context):
        return []
    chunks = []
    for source in context.sources:
        labelled = [] if source.control else labelled_latents(context, source.name)
        count = context.config.controls.null_size(len(labelled))
        rng = np.random.default_rng(seed_for(context.config.seed, "null labels", source.name))
        chosen = sorted(int(latent) for latent in rng.permutation(labelled)[:count])
        if chosen:
            payload = {"pairs": [[latent, latent] for latent in chosen], _NULL: True}
            chunks.append(ChunkSpec(taken.get(source.name, 0), source.name, payload, len(chosen)))
    return chunks


def null_judges(context: RunContext) -> list[Scorer]:
    """The scorers that can be asked about a null label: language models that judge windows."""
    return [
        scorer
        for scorer in context.scorers
        if scorer.llm_needs() and scorer.judges_explanation and scorer.reads_windows and scorer.can_judge(ANY_TEXT)
    ]


def null_rows(context: RunContext, spec: ChunkSpec, progress: Progress) -> list[Base]:
    """What judges say of labels that fit nothing, and everything."""
    judges = null_judges(context)

    async def work(evidence: LatentEvidence, llms: LLMs) -> list[Score]:
        return await score_latent(judges, null_labels(evidence.latent), evidence, llms)

    evidence = (evidence_of(context, spec.source, int(latent)) for latent, _ in spec.payload["pairs"])
    kinds = {FITS_NOTHING: NULL_NOTHING, FITS_EVERYTHING: NULL_EVERYTHING, IS_EMPTY: NULL_EMPTY}
    return [
        control_row(context.run_id, spec.source, kinds[str(score.explainer)], with_tally(score, str(score.explainer)))
        for score in over_latents(context, spec.source, evidence, work, progress, asks=True)
    ]


def _shuffled_row(context: RunContext, source: str, score: Score) -> ControlRow:
    """A score under another latent's label; of the judge whose verdicts are estimated from they are kept."""
    row = control_row(context.run_id, source, SHUFFLED, with_tally(score, SHUFFLED))
    judge = estimated_judge(context)
    if judge is not None and score.scorer == judge.kind and score.verdicts:
        row.values[VERDICTS] = score.verdicts
    return row


def with_tally(score: Score, kind: str) -> Score:
    """The score with its silent windows and the confirmed yeses among them: ``<kind>_silent_judged`` and ``_yes``."""
    if not score.verdicts or not score.verdicts.get("pool"):
        return score
    tally = Tally.of(score.verdicts)
    counted: dict[str, ScoreValue] = {
        f"{kind}_silent_judged": sum(tally.judged),
        f"{kind}_silent_yes": sum(tally.yes),
    }
    return score.model_copy(update={"values": score.values | counted})


def shuffled_pairs(context: RunContext, source: str) -> list[list[int]]:
    """``[latent, donor]``: labelled latents (all, or a random ``shuffled_latents``), each with another one's label."""
    seed = seed_for(context.config.seed, "shuffled labels", source)
    return dealt_pairs(labelled_latents(context, source), seed, max(context.config.controls.shuffled_latents, 2))


def dealt_pairs(latents: Sequence[int], seed: int, count: int | None = None) -> list[list[int]]:
    """``[latent, donor]`` of at most ``count`` random ones of ``latents``, each with another one of them."""
    if len(latents) < 2:
        return []
    chosen = np.random.default_rng(seed).permutation(latents)[:count].tolist()
    # a cycle through a random order is uniform among its kind and leaves no latent with its own label
    donors = [*chosen[1:], chosen[0]]
    return sorted([int(latent), int(donor)] for latent, donor in zip(chosen, donors, strict=True))


def labelled_latents(context: RunContext, source: str) -> list[int]:
    """Latents of a source with a text on the input side, ascending."""
    return context.store.explained_latents(context.run_id, source, sorted(_kinds(context)))


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
