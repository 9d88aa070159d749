"""Finds out what a submitted run's language models can do, before anything is spent on it."""

from __future__ import annotations

from autointerp.llm.prior_calls import PriorCalls
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.endpoint_check import check_endpoints, needs_of
from autointerp.pipeline.owner import Owner
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage


class CheckEndpoints(Stage):
    """Endpoints to their capabilities; done where calls are made, since the keys are there."""

    name = "check_endpoints"
    queue = "llm"
    unit = "checks"

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return [ChunkSpec(0)] if needs_of(context.config) else []

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        calls = PriorCalls(context.config.budget)
        try:
            found = check_endpoints(context.config, calls)
        finally:
            calls.enter(context.store, context.run_id, str(Owner.of_this_process()))
        for name, capabilities in found.items():
            context.store.add_artefact(context.run_id, f"capabilities/{name}", {"capabilities": sorted(capabilities)})
        return ChunkResult()
