"""A machine of a cluster whose machines share no folder: a process that does chunks of a run with a folder of its own.

python -m tests.autointerp.exchange_world STORE RUN FOLDER REMOTE STAGE,STAGE,...: does the ready chunks of these stages until the run
is done. REMOTE may be "" for a machine that exchanges nothing.
"""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path
from typing import Any

from sqlalchemy import select

from autointerp.artefacts.exchange import Exchange
from autointerp.artefacts.remote import Remote
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.execution import execute
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage
from autointerp.pipeline.stages import STAGES
from autointerp.pipeline.starting import open_run
from autointerp.store import ChunkState, LabelStore, open_store
from autointerp.store.models import Chunk

_PATIENCE_S = 240.0


def exchanging(stage: Stage, exchange: Exchange, store: LabelStore, run_id: str) -> Stage:
    """The stage with files fetched before it is planned and run, and published after."""
    run, plan = stage.run, stage.plan

    def fetch_and_plan(context: RunContext) -> list[ChunkSpec]:
        exchange.fetch(stage, None)
        return plan(context)

    def run_and_exchange(context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        exchange.fetch(stage, spec)
        result = run(context, spec, progress)
        with store.reading() as connection:
            place = (Chunk.run_id == run_id, Chunk.stage == stage.name, Chunk.source == spec.source)
            fence = connection.execute(select(Chunk.fence).where(*place, Chunk.ordinal == spec.ordinal)).scalar_one()
        return ChunkResult([*result.rows, *exchange.publish(stage, spec, fence)], result.units)

    wrapped: Any = copy.copy(stage)
    wrapped.run, wrapped.plan = run_and_exchange, fetch_and_plan
    return wrapped


def machine(url: str, run_id: str, folder: Path, remote: str, names: list[str]) -> None:
    """Do chunks until the run is done. Errors: whatever a chunk raises."""
    store = open_store(url, create=False)
    context = open_run(store, run_id, folder)
    stages = list(STAGES)
    if remote:
        exchange = Exchange(Remote(remote), store, run_id, folder)
        stages = [exchanging(stage, exchange, store, run_id) for stage in stages]
    by_name = {stage.name: stage for stage in stages}
    until = time.monotonic() + _PATIENCE_S
    while store.run(run_id).state != "done":
        if time.monotonic() > until:
            raise TimeoutError(f"not done: {store.counts(run_id)}")
        for chunk in store.chunks(run_id, ChunkState.READY):
            spec = ChunkSpec(chunk.ordinal, chunk.source, chunk.spec, chunk.planned_units)
            if chunk.stage in names and by_name[chunk.stage].can_begin(context, spec):
                execute(chunk.id, context, stages)
                break  # others may have become ready
        else:
            time.sleep(0.05)


if __name__ == "__main__":
    machine(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4], sys.argv[5].split(","))
