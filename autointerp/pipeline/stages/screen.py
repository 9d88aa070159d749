"""Shows many labels and many windows to a language model at once: a cheap look at the bulk of the text (METHODS 4).

The first round goes before the scores, which draw their bulk windows from it. Further rounds are for labels whose precision is not
known well enough by then: they ask the judge itself about what is flagged and, where that is what leaves it open, about more windows
near the label.
"""

from __future__ import annotations

from autointerp.judging.screening import COMPANY
from autointerp.pipeline.asking import chunks_at_once
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.latent_evidence import chunk_evidence
from autointerp.pipeline.natural_rate.affording import affordable_labels
from autointerp.pipeline.natural_rate.labels import (
    Estimated,
    estimated_judge,
    estimated_labels,
    estimates_of,
    goes_on,
    judged_sources,
)
from autointerp.pipeline.natural_rate.screening import (
    ScreenedLabel,
    ToScreen,
    label_chunks,
    near_rows,
    of_labels,
    screen_labels,
)
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, latent_chunks
from autointerp.sampling.window import Stratum
from autointerp.store.models import ScreenRow
from sae_core.hashing import seed_for


class Screen(Stage):
    """Labels to what a screen says of them, and from the second round on to what the judge says of that."""

    queue = "llm"
    unit = "labels"
    writes = (ScreenRow,)
    essential = False

    def __init__(self, number: int) -> None:
        self.number = number
        """Ordinal of the round, from 1."""
        self.name = f"screen_{number}"
        if number == 1:
            self.after_all = ("merge", "lens")
            self.after_same = ("explain", "revise_1", "revise_2", "revise_3", "revise_4")
        else:
            self.after_all = (f"estimate_{number - 1}",)

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        settings = context.config.precision
        if estimated_judge(context) is None or not settings.screen_windows or self.number > settings.rounds:
            return []
        judged = judged_sources(context)
        if self.number == 1:
            return [chunk for chunk in latent_chunks(context) if chunk.source in judged]
        wide = self._wide(context)
        room = affordable_labels(context)
        widest = sorted(wide, key=lambda found: -found[1].width)[:room]
        chosen = [(source, label) for source, label in wide if (source, label) in set(widest)]
        chunks = []
        for source in judged:
            labels = [(label.latent, label.explainer) for name, label in chosen if name == source]
            chunks += label_chunks(context, source, labels)
        return chunks

    def _wide(self, context: RunContext) -> list[tuple[str, Estimated]]:
        """Labels with their sources that go on after the round before."""
        found = [
            (source, label)
            for source in judged_sources(context)
            for label in estimates_of(context, source, self.number - 1)
        ]
        if self.number > 2:  # a label that stopped once does not begin again
            last = {
                (row.source, row.latent, row.explainer)
                for source in judged_sources(context)
                for row in context.store.screens(context.run_id, source, stage=f"screen_{self.number - 1}")
            }
            found = [(source, label) for source, label in found if (source, label.latent, label.explainer) in last]
        return [(source, label) for source, label in found if goes_on(context, label)]

    def remark(self, context: RunContext) -> str | None:
        if self.number == 1:
            return None
        counts = [count for count in context.store.counts(context.run_id) if count.stage == self.name]
        asked, wide = sum(count.units for count in counts), len(self._wide(context))
        if asked >= wide:
            return None
        return (
            f"{self.name}: the budget has room for {asked:,} of {wide:,} labels whose precision is known only roughly; a larger one "
            "helps the next run"
        )

    def at_once(self, context: RunContext) -> int:
        return chunks_at_once(context.scorers)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        settings = context.config.precision
        if self.number == 1:
            evidence = {item.latent: item for item in chunk_evidence(context, spec, causal=False)}
            texts = estimated_labels(context, spec.source, list(evidence))
            labels = [ToScreen(text, evidence[text.latent]) for text in texts]
            return ChunkResult(screen_labels(context, spec, self.name, labels, settings.screen_windows, progress))

        judge = estimated_judge(context)
        assert judge is not None, "where nothing is estimated no chunk is planned"
        unsure = {
            (label.latent, label.explainer)
            for label in estimates_of(
                context, spec.source, self.number - 1, [int(latent) for latent, _ in spec.payload["pairs"]]
            )
            if label.near_width > settings.width
        }
        seed = seed_for(context.config.seed, self.name)

        def to_judge(found: ScreenedLabel) -> list[tuple[int, Stratum]]:
            flagged = [(row, Stratum.FLAGGED) for row in found.rows[found.flagged][: settings.verified].tolist()]
            text, room = found.label.explanation, judge.per_call - len(flagged) - COMPANY
            near = near_rows(found.label, max(room, 0), seed) if (text.latent, text.explainer) in unsure else []
            # among others, because what a judge says of a window hangs on what stands beside it
            rest = found.rows[~found.flagged][: COMPANY if flagged or near else 0].tolist()
            return [*flagged, *near, *((row, Stratum.BULK) for row in rest)]

        labels, count = of_labels(context, spec), settings.round_windows
        return ChunkResult(screen_labels(context, spec, self.name, labels, count, progress, to_judge, "verify"))
