"""A tiny run of fake stages: real chunks, leases and files, no model. Run as a script it is a child to be killed.

python -m tests.pipeline_world OUT [--lease SECONDS]
"""

from __future__ import annotations

import sys
from pathlib import Path

from autointerp.config import CoderConfig, CorpusConfig, RunConfig, SubjectConfig
from autointerp.explanation import Explanation
from autointerp.pipeline.atomic_files import atomic_write
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.driver import LocalDriver
from autointerp.pipeline.folder import RunFolder
from autointerp.pipeline.interruption import Interrupted
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, decode_latents, latent_chunks
from autointerp.progress import SilentDisplay
from autointerp.score import Score
from autointerp.store import LabelStore, open_store
from autointerp.store.models import Artefact, LabelRow, Run
from autointerp.store.opening import sqlite_url
from autointerp.store.rows import explanation_row, score_row
from sae_core.records import Source

RUN_ID = "fake-1"
NUM_LATENTS = 10
SHARDS = 3


class Shards(Stage):
    """Writes a file a shard."""

    name = "shards"
    queue = "gpu"

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return [ChunkSpec(ordinal, payload={"number": ordinal}, units=2) for ordinal in range(SHARDS)]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        progress(1)
        with atomic_write(context.folder.root / f"shard-{spec.ordinal}.txt") as temporary:
            temporary.write_text(str(10 ** spec.payload["number"]))
        progress(2)
        return ChunkResult()


class Sum(Stage):
    """A barrier that adds the shards up."""

    name = "sum"
    queue = "control"
    after_all = ("shards",)

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return [ChunkSpec(0)]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        total = sum(int((context.folder.root / f"shard-{n}.txt").read_text()) for n in range(SHARDS))
        return ChunkResult([Artefact(run_id=context.run_id, kind="total", version=1, value={"total": total})])


class ExplainFake(Stage):
    """An explanation a latent."""

    name = "explain"
    queue = "llm"
    unit = "latents"
    after_all = ("sum",)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        total = (context.store.artefact(context.run_id, "total") or {})["total"]
        rows = []
        for done, latent in enumerate(decode_latents(spec), start=1):
            explanation = Explanation(latent=latent, explainer="fake", text=f"fires on {total + latent}")
            rows.append(explanation_row(context.run_id, spec.source, explanation))
            progress(done)
        return ChunkResult(rows)


class ScoreFake(Stage):
    """The length of the explanation as its score; follows explain chunk by chunk."""

    name = "score"
    queue = "llm"
    unit = "latents"
    after_same = ("explain",)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        found = context.store.explanations(context.run_id, spec.source, decode_latents(spec))
        scores = [
            Score(latent=e.latent, scorer="length", explainer="fake", values={"f1": 1 / len(e.text)}) for e in found
        ]
        return ChunkResult([score_row(context.run_id, spec.source, score) for score in scores])


class LabelFake(Stage):
    """A label for every latent, after all scores."""

    name = "label"
    queue = "control"
    after_all = ("score",)

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        texts = {e.latent: e.text for e in context.store.explanations(context.run_id, spec.source)}
        rows = []
        for latent in decode_latents(spec):
            text = texts.get(latent)
            row = LabelRow(run_id=context.run_id, source=spec.source, latent=latent, text=text, decided_by="fake")
            row.status = "failed" if text is None else "labelled"
            rows.append(row)
        return ChunkResult(rows)


STAGES: tuple[Stage, ...] = (Shards(), Sum(), ExplainFake(), ScoreFake(), LabelFake())


def fake_config() -> RunConfig:
    """A configuration without components."""
    return RunConfig(
        subject=SubjectConfig(model="fake"),
        coders=(CoderConfig(path="fake"),),
        corpus=CorpusConfig(path="fake"),
        explainers=(),
        scorers=(),
        chunk_latents=3,
    )


def fake_sources() -> list[Source]:
    """Two sources of NUM_LATENTS latents."""
    return [Source(name, "fake", "0", "layers.0", "fake", "0" * 64, NUM_LATENTS) for name in ("one", "two")]


def open_context(out: Path) -> RunContext:
    """The run in ``out``, made where it is not there."""
    out.mkdir(parents=True, exist_ok=True)
    store = open_store(sqlite_url(out / "autointerp.db"))
    config = fake_config()
    if not store.has_run(RUN_ID):
        store.create_run(
            Run(
                id=RUN_ID,
                name="fake",
                digest=config.digest,
                ordinal=1,
                config={},
                state="running",
                folder=str(out),
                code_version="0",
            )
        )
    store.add_sources(RUN_ID, fake_sources())
    return RunContext(config, RunFolder(out), store, RUN_ID)


def final_tables(store: LabelStore) -> dict[str, object]:
    """Everything that a run leaves behind, without times, attempts and fences."""
    sources = [source.name for source in store.sources(RUN_ID)]
    return {
        "explanations": {name: store.explanations(RUN_ID, name) for name in sources},
        "scores": {name: store.scores(RUN_ID, name) for name in sources},
        "labels": {
            name: [(row.latent, row.status, row.text) for row in store.labels(RUN_ID, name)] for name in sources
        },
        "total": store.artefact(RUN_ID, "total"),
        "chunks": [(c.stage, c.source, c.ordinal, c.state, c.spec, c.units, c.owner) for c in store.chunks(RUN_ID)],
        "run": store.run(RUN_ID).state,
    }


def main(arguments: list[str]) -> int:
    """Run to the end; exit as the command line does."""
    lease_s = float(arguments[arguments.index("--lease") + 1]) if "--lease" in arguments else 60.0
    try:
        LocalDriver(open_context(Path(arguments[0])), STAGES, SilentDisplay(), lease_s=lease_s).run()
    except Interrupted as interrupted:
        return 128 + interrupted.signal_number
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
