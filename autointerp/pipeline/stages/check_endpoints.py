"""Finds out what a submitted run's language models can do, before anything is spent on it."""

from __future__ import annotations

from autointerp.pipeline.context import RunContext
from autointerp.pipeline.endpoint_check import check_needs, needs_of
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage


class CheckEndpoints(Stage):
    """Endpoints to their capabilities; done where calls are made, since the keys are there."""

    name = "check_endpoints"
    queue = "llm"
    unit = "checks"

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return [ChunkSpec(0)] if needs_of(context.config) else []

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        needs, endpoints = needs_of(context.config), context.config.build_endpoints()
        asked = {need.endpoint or endpoints[0].name for _, need in needs}
        found = {name: context.llms.find_out(name) for name in sorted(asked)}
        check_needs(needs, endpoints, found)
        for name, capabilities in found.items():
            context.store.add_artefact(context.run_id, f"capabilities/{name}", {"capabilities": sorted(capabilities)})
        return ChunkResult()
