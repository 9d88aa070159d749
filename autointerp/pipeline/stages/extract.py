"""One streamed pass over the corpus for all coders at once, a shard a chunk."""

from __future__ import annotations

import itertools

import numpy as np

from autointerp.pipeline.atomic_files import sync
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage


class Extract(Stage):
    """Contexts to a partial for each source."""

    name = "extract"
    queue = "gpu"
    unit = "tokens"
    after_all = ("tokenize", "directions")

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        starts = np.asarray(context.corpus.context_start)  # [C + 1] tokens before each context
        shard = starts[:-1] // context.config.extraction.shard_tokens
        edges = [*np.flatnonzero(np.r_[True, shard[1:] != shard[:-1]]).tolist(), len(shard)]
        return [
            ChunkSpec(ordinal, payload={"contexts": [first, last]}, units=int(starts[last] - starts[first]))
            for ordinal, (first, last) in enumerate(itertools.pairwise(edges))
        ]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        from sae_core.extraction import extract

        first, last = spec.payload["contexts"]
        names = [source.name for source in context.sources]
        partials = extract(
            context.subject,
            [context.attached(name) for name in names],
            context.corpus,
            range(first, last),
            context.extraction_settings,
            progress,
        )
        for name, partial in zip(names, partials, strict=True):
            path = context.folder.partial(name, spec.ordinal)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.save(path)
            sync(path)
        return ChunkResult()
