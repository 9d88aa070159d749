"""Writes the summary and the picture, and clears away what only extraction needed."""

from __future__ import annotations

import shutil

import numpy as np

from autointerp.pipeline.atomic_files import atomic_write
from autointerp.pipeline.causal_record import causal_record
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.dictionary_rows import control_records
from autointerp.pipeline.natural_rate.record import precision_record
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage
from autointerp.pipeline.stages.self_test import artefact_kind
from autointerp.store.ledger import spend_by_purpose
from sae_core.hashing import seed_for


class Summarise(Stage):
    """Dictionary and controls to ``summary.json`` and ``overview.png``."""

    name = "summarise"
    queue = "export"
    unit = "summaries"
    after_all = ("export", "self_test")

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return [ChunkSpec(0)]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        write_summary(context)
        for source in context.sources:
            shutil.rmtree(context.folder.source(source.name) / "partials", ignore_errors=True)
        return ChunkResult()


def write_summary(context: RunContext) -> None:
    """Write ``summary.json`` and ``overview.png`` from the exported dictionary and the store."""
    import pandas as pd

    from autointerp.pipeline.judge_records import judge_records
    from autointerp.report.overview import draw_overview
    from autointerp.report.summary import build_summary, summary_json

    folder, store = context.folder, context.store
    table = pd.read_parquet(folder.dictionary)
    controls = pd.DataFrame(control_records(context))
    if controls.empty:
        controls = pd.DataFrame({"source": [], "kind": [], "latent": []}).astype(
            {"source": str, "kind": str, "latent": "int64"}
        )
    run = store.run(context.run_id)
    corpus = store.artefact(context.run_id, "corpus") or {}
    summary = build_summary(
        table,
        controls,
        {
            "run_id": run.id,
            "name": run.name,
            "digest": run.digest,
            "code_version": run.code_version,
            "seed": context.config.seed,
            "corpus": corpus,
            "prompts": context.config.prompt_hashes(),
        },
        store.timings(context.run_id),
        {
            "dictionary": folder.dictionary.name,
            "summary": folder.summary.name,
            "overview": folder.overview.name,
            "store": folder.database.name,
        },
        np.random.default_rng(seed_for(context.config.seed, "summary")),
        judgings=pd.DataFrame(judge_records(context)),
        precision=precision_record(context),
        causal=causal_record(context),
    )
    summary["llm"] = [
        {"purpose": purpose, "endpoint": endpoint, **spend._asdict()}
        for (purpose, endpoint), spend in spend_by_purpose(store, context.run_id).items()
    ]
    tested = {s.name: store.artefact(context.run_id, artefact_kind(s.name)) for s in context.sources}
    summary["self_test"] = {name: found for name, found in tested.items() if found is not None}
    with atomic_write(folder.overview) as temporary:
        draw_overview(table, summary, temporary, controls)
    with atomic_write(folder.summary) as temporary:
        temporary.write_text(summary_json(summary), encoding="utf-8")
