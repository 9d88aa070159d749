"""Has texts written from labels, and runs them on the subject, for scorers that count on which of them a latent fires.

As whatever runs the subject is a GPU stage that writes evidence, these are stages of their own before ``score``. The controls
need what a latent does on texts that were written from another one's label: nothing more is asked for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.judging.written_texts import WrittenTexts
from autointerp.llm.asking import AskFailed, LLMs
from autointerp.pipeline.asking import chunks_at_once, over_latents
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.latent_evidence import chunk_evidence
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, latent_chunks
from autointerp.pipeline.stages.controls import shuffled_chunks
from autointerp.pipeline.stages.score import explanations_of
from autointerp.pipeline.written_texts import WrittenFor, load_written, save_written, texts_to_try, writers
from autointerp.scorers.base import Scorer
from autointerp.store.models import ScoreRow
from sae_core.tried_texts import save_tried_texts


class Write(Stage):
    """Explanations to texts that put them to the test."""

    name = "write"
    queue = "llm"
    unit = "latents"
    after_all = ("merge", "lens")
    after_same = ("explain", "revise_1", "revise_2", "revise_3", "revise_4")
    leaves = ("written-labels",)
    prepares = (ScoreRow,)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context) if writers(context) else []

    def at_once(self, context: RunContext) -> int:
        return chunks_at_once(writers(context))

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        explanations = explanations_of(context, spec)
        scorers = writers(context)

        async def work(evidence: LatentEvidence, llms: LLMs) -> list[WrittenTexts]:
            if evidence.is_dead:  # labels from elsewhere may be about dead latents
                return []
            pairs = [
                (scorer, explanation)
                for scorer in scorers
                for explanation in explanations.get(evidence.latent, [])
                if explanation.failure is None and scorer.can_judge(explanation)
            ]
            return await asyncio.gather(*(_write_one(scorer, explanation, llms) for scorer, explanation in pairs))

        evidence = chunk_evidence(context, spec, causal=False)
        asks = any(scorer.llm_needs() for scorer in scorers)
        found = over_latents(context, spec.source, evidence, work, progress, asks=asks)
        save_written(context.folder.written(spec.source, "labels", spec.ordinal), found)
        return ChunkResult()


async def _write_one(scorer: Scorer, explanation: Explanation, llms: LLMs) -> WrittenTexts:
    """The scorer's texts; what goes wrong with this label is their failure, everything else is the run's."""
    try:
        return await scorer.write(explanation, llms)
    except AskFailed as error:
        return WrittenTexts(
            latent=explanation.latent, scorer=scorer.kind, explainer=explanation.explainer, failure=error.failure
        )


class TryWritten(Stage):
    """Written texts to what the latent does on them."""

    name = "try_written"
    queue = "gpu"
    unit = "latents"
    after_same = ("write",)
    leaves = ("tried-labels",)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context) if writers(context) else []

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        _try(context, spec, "labels", load_written(context.folder.written(spec.source, "labels", spec.ordinal)))
        return ChunkResult()


class TryShuffled(Stage):
    """Texts that were written from one latent's label to what another latent does on them, for the controls."""

    name = "try_shuffled"
    queue = "gpu"
    unit = "latents"
    after_all = ("try_written",)
    leaves = ("written-shuffled", "tried-shuffled")
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return shuffled_chunks(context) if writers(context) else []

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        place = {latent: number for number, latent in enumerate(context.latents(spec.source))}
        size = context.config.chunk_latents
        donors = {int(donor) for _, donor in spec.payload["pairs"]}
        of_donor: dict[int, list[WrittenTexts]] = {}
        for ordinal in sorted({place[donor] // size for donor in donors}):
            for one in load_written(context.folder.written(spec.source, "labels", ordinal)):
                of_donor.setdefault(one.latent, []).append(one)
        borrowed = [
            one.borrowed_by(int(latent))
            for latent, donor in spec.payload["pairs"]
            for one in of_donor.get(int(donor), [])
        ]
        save_written(context.folder.written(spec.source, "shuffled", spec.ordinal), borrowed)
        _try(context, spec, "shuffled", borrowed)
        return ChunkResult()


def _try(context: RunContext, spec: ChunkSpec, what: WrittenFor, writings: Sequence[WrittenTexts]) -> None:
    from sae_core.text_trial import try_texts

    attached = context.attached(spec.source)
    tried = try_texts(context.subject, attached, texts_to_try(writings), context.batch_tokens)
    save_tried_texts(context.folder.tried_written(spec.source, what, spec.ordinal), tried)
