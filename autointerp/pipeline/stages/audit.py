"""Many more windows of a few random labels, which check what the estimate says of all (METHODS 4)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from autointerp.pipeline.asking import chunks_at_once
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.natural_rate.labels import AUDIT, estimated_judge, judged_sources
from autointerp.pipeline.natural_rate.screening import ScreenedLabel, label_chunks, of_labels, screen_labels
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage
from autointerp.sampling.window import Stratum
from autointerp.store.models import ScreenRow
from sae_core.hashing import seed_for


class Audit(Stage):
    """Random labels to verdicts on many of their bulk windows."""

    name = AUDIT
    queue = "llm"
    unit = "labels"
    after_all = ("screen_1", "score")
    writes = (ScreenRow,)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        judge, settings = estimated_judge(context), context.config.precision
        if judge is None or not settings.audit_latents:
            return []
        chunks = []
        for source in judged_sources(context):
            judged = [
                (latent, explainer)
                for latent, explainer, _, failed in context.store.values_of_judge(context.run_id, source, judge.kind)
                if explainer and not failed
            ]
            rng = np.random.default_rng(seed_for(context.config.seed, "audit", source))
            chosen = sorted(judged[index] for index in rng.permutation(len(judged))[: settings.audit_latents])
            windows = settings.audit_size(len(judged), self._judged_for_each(context, source), judge.per_call)
            for chunk in label_chunks(context, source, chosen) if windows else ():
                chunk.payload["windows"] = windows
                chunks.append(chunk)
        return chunks

    def _judged_for_each(self, context: RunContext, source: str) -> int:
        """Windows that the judge was asked about for one label, on average."""
        judge = estimated_judge(context)
        assert judge is not None, "where nothing is estimated no chunk is planned"
        asked = [
            sum(value for name in ("judged", "failed") if isinstance(value := values.get(f"{judge.kind}_{name}"), int))
            for _, _, values, _ in context.store.values_of_judge(context.run_id, source, judge.kind)
        ]
        return round(sum(asked) / max(len(asked), 1))

    def at_once(self, context: RunContext) -> int:
        return chunks_at_once(context.scorers)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        def unflagged(found: ScreenedLabel) -> list[tuple[int, Stratum]]:
            return [(row, Stratum.BULK) for row in found.rows[~found.flagged].tolist()]

        # windows of the first screen may come up again: few are left where the text is short, and nothing is counted twice
        labels = [replace(label, shown=frozenset()) for label in of_labels(context, spec)]
        count = int(spec.payload["windows"])
        return ChunkResult(screen_labels(context, spec, self.name, labels, count, progress, unflagged, "audit"))
