"""Rounds of trying texts on the subject and correcting labels by what it did on them (METHODS 2, ``revise``).

Each round is two stages, as whatever runs the subject is a GPU stage that writes evidence: ``try_n`` and ``revise_n``.
"""

from __future__ import annotations

from dataclasses import replace

from autointerp.evidence import LatentEvidence
from autointerp.explainers.base import Explainer
from autointerp.explanation import Explanation
from autointerp.llm.asking import LLMs
from autointerp.pipeline.asking import chunks_at_once, over_latents
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.drafts import load_drafts, save_drafts
from autointerp.pipeline.latent_evidence import chunk_evidence
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, latent_chunks
from autointerp.store.models import Base, ExplanationRow
from autointerp.store.rows import explanation_row
from sae_core.tried_texts import TriedText, load_tried_texts, save_tried_texts

MOST_ROUNDS = 4


def _in_rounds(context: RunContext, least: int) -> list[Explainer]:
    return [explainer for explainer in context.explainers if explainer.rounds_of_tests >= least]


class TryTexts(Stage):
    """The texts that drafts propose to what the latent does on them."""

    queue = "gpu"
    unit = "latents"
    essential = False

    def __init__(self, number: int) -> None:
        self.number = number
        """Ordinal of the round, from 1."""
        self.name = f"try_{number}"
        self.after_same = ("explain" if number == 1 else f"revise_{number - 1}",)
        self.leaves = (f"tried-{number}",)

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context) if _in_rounds(context, self.number) else []

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        from sae_core.text_trial import try_texts

        drafts = load_drafts(context.folder.drafts(spec.source, self.number - 1, spec.ordinal))
        texts: dict[int, list[tuple[int, str]]] = {}
        for draft in drafts:
            if draft.failure is None:
                proposed = [(self.number, str(test["text"])) for test in draft.payload.get("tests", ())]
                texts.setdefault(draft.latent, []).extend(proposed)
        tried = try_texts(context.subject, context.attached(spec.source), texts)
        path = context.folder.tried(spec.source, self.number, spec.ordinal)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tried_texts(path, tried)
        return ChunkResult()


class Revise(Stage):
    """Drafts and what was tried to better drafts, and to explanations in an explainer's last round."""

    queue = "llm"
    unit = "latents"
    writes = (ExplanationRow,)
    essential = False

    def __init__(self, number: int) -> None:
        self.number = number
        """Ordinal of the round, from 1."""
        self.name = f"revise_{number}"
        self.after_same = (f"try_{number}",)
        self.leaves = (f"drafts-{number}",)

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context) if _in_rounds(context, self.number) else []

    def at_once(self, context: RunContext) -> int:
        return chunks_at_once(context.explainers)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        drafts = load_drafts(context.folder.drafts(spec.source, self.number - 1, spec.ordinal))
        by_latent: dict[int, list[Explanation]] = {}
        for draft in drafts:
            by_latent.setdefault(draft.latent, []).append(draft)
        tried: dict[int, list[TriedText]] = {}
        for number in range(1, self.number + 1):
            path = context.folder.tried(spec.source, number, spec.ordinal)
            for text in load_tried_texts(path) if path.is_file() else ():  # a round that was given up has run none
                tried.setdefault(text.latent, []).append(text)
        explainers = {explainer.kind: explainer for explainer in _in_rounds(context, self.number)}

        async def work(evidence: LatentEvidence, llms: LLMs) -> list[Explanation]:
            seen = replace(evidence, tried=tuple(tried.get(evidence.latent, ())))
            return [
                draft if draft.failure is not None else await explainers[draft.explainer].revise(draft, seen, llms)
                for draft in by_latent.get(evidence.latent, [])
            ]

        evidence = chunk_evidence(context, spec, causal=False)
        found = over_latents(context, spec.source, evidence, work, progress, asks=True)
        last = {kind for kind, explainer in explainers.items() if explainer.rounds_of_tests == self.number}
        save_drafts(
            context.folder.drafts(spec.source, self.number, spec.ordinal), [e for e in found if e.explainer not in last]
        )
        rows: list[Base] = [explanation_row(context.run_id, spec.source, e) for e in found if e.explainer in last]
        return ChunkResult(rows)
