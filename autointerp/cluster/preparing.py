"""The chunks with which a submitted run begins: its subject, coders and endpoints are checked by processes that can reach them."""

from __future__ import annotations

from autointerp.pipeline.stages import PREPARATIONS
from autointerp.pipeline.starting import open_run
from autointerp.store import LabelStore, NewChunk


def plan_preparations(store: LabelStore, run_id: str) -> None:
    """Ready the chunks with which a submitted run begins, once; none for a run that was begun where it is worked."""
    if store.sources(run_id):
        return
    context = open_run(store, run_id)
    for stage in PREPARATIONS:
        # what needs no subject needs no GPU worker
        queue = "control" if stage.name == "prepare" and context.config.extraction.reuse is not None else stage.queue
        chunks = [
            NewChunk(stage.name, queue, spec.ordinal, spec.payload, spec.source, spec.units, priority=-1_000)
            for spec in stage.plan(context)
        ]
        store.plan(run_id, stage.name, chunks)
