"""Streamed passes over the corpus for all coders at once; a chunk is a shard of the corpus for a range of latents."""

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
        shard = starts[:-1] // context.config.extraction.shard_size
        edges = [*np.flatnonzero(np.r_[True, shard[1:] != shard[:-1]]).tolist(), len(shard)]
        most = max(source.num_latents for source in context.sources)
        width = context.config.extraction.latents_per_pass or most
        passes = [(first, min(most, first + width)) for first in range(0, most, width)]
        # pass after pass, so that a source with few latents has the first of the partials
        return [
            ChunkSpec(
                ordinal,
                payload={"contexts": shard, "latents": latents},
                units=int(starts[shard[1]] - starts[shard[0]]),
            )
            for ordinal, (latents, shard) in enumerate(itertools.product(passes, itertools.pairwise(edges)))
        ]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        contexts, latents = range(*spec.payload["contexts"]), range(*spec.payload["latents"])
        try:
            partials = context.extractor(latents, contexts).extract(contexts, progress)
            for name, partial in zip(context.sources_with(latents), partials, strict=True):
                path = context.folder.partial(name, spec.ordinal)
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.save(path)
                sync(path)
        except BaseException:
            context.drop_extractor()
            raise
        return ChunkResult()
