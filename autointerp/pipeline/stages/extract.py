"""Streamed passes over the corpus for all coders at once; a chunk is a shard of the corpus for a range of latents."""

from __future__ import annotations

import itertools

from autointerp.pipeline.atomic_files import sync
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.shards import is_there, note_text, read_shard, shard_units
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage


class Extract(Stage):
    """Contexts to a partial for each source; a shard may begin as soon as its contexts are on disk."""

    name = "extract"
    queue = "gpu"
    unit = "tokens"
    after_all = ("directions",)

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        if context.folder.reused is not None:
            return []
        most = max(source.num_latents for source in context.sources)
        width = context.config.extraction.latents_per_pass or most
        passes = [(first, min(most, first + width)) for first in range(0, most, width)]
        # pass after pass, so that a source with few latents has the first of the partials
        return [
            ChunkSpec(ordinal, payload={"shard": shard, "latents": latents}, units=units)
            for ordinal, (latents, (shard, units)) in enumerate(
                itertools.product(passes, enumerate(shard_units(context.config)))
            )
        ]

    def can_begin(self, context: RunContext, spec: ChunkSpec) -> bool:
        return is_there(context, spec.payload["shard"])

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        latents = range(*spec.payload["latents"])
        corpus, contexts = read_shard(context, spec.payload["shard"])
        try:
            partials = context.extractor(latents, corpus, contexts).extract(contexts, progress)
            for name, partial in zip(context.sources_with(latents), partials, strict=True):
                path = context.folder.partial(name, spec.ordinal)
                note_text(path, corpus, contexts)
                partial.save(path)
                sync(path)
        except BaseException:
            context.drop_extractor()
            raise
        return ChunkResult()
