"""What a submitted run does first: everything is checked by a process that can load the subject and the coders."""

from __future__ import annotations

from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage


class Prepare(Stage):
    """The configuration to the run's sources. A run that begins where it is worked has been checked before it is there."""

    name = "prepare"
    queue = "gpu"
    unit = "checks"

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return [ChunkSpec(0)]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        from autointerp.pipeline.starting import preflight

        subject = context.__dict__.get("subject")  # another run's: a GPU seldom has room for two
        if subject is not None and not subject.is_unchanged():
            context.release_subject()
            subject = None
        sources, loaded, _, _ = preflight(context.config, context.folder, ask_endpoints=False, subject=subject)
        del loaded["capabilities"]
        context.store.add_sources(context.run_id, sources)
        context.__dict__.pop("sources", None)
        context.__dict__.update(loaded)
        return ChunkResult()
