"""What a retry does again of a run that went on without a chunk: the real stages' order, over chunks and files made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from autointerp.explanation import Explanation
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.drafts import load_drafts, save_drafts
from autointerp.pipeline.driver import LocalDriver
from autointerp.pipeline.retrying import retry_failures
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, decode_latents, latent_chunks
from autointerp.pipeline.stages import STAGES, revise
from autointerp.progress import SilentDisplay
from autointerp.score import Score
from autointerp.store import MAX_ATTEMPTS, ChunkState, NewChunk
from autointerp.store.models import ScoreRow
from autointerp.store.rows import explanation_row, score_row
from tests import pipeline_world as world

OF_ALL = ("attribute", "merge", "tokenize")
"""Stages whose chunks are of all sources."""
CHUNKS = 4
"""Of each source: ten latents in chunks of three."""


def finished(out: Path, without: tuple[str, ...] = ()) -> RunContext:
    """A run whose stages are all done, each with chunks (but for those ``without``); every latent has a score, and one a person's."""
    context = world.open_context(out)
    for stage in STAGES:
        chunks = latent_chunks(context) if stage.name not in OF_ALL else [ChunkSpec(0), ChunkSpec(1)]
        new = [
            NewChunk(stage.name, stage.queue, c.ordinal, c.payload, c.source, c.units, ChunkState.DONE) for c in chunks
        ]
        context.store.plan(world.RUN_ID, stage.name, [] if stage.name in without else new)
    rows = [
        score_row(world.RUN_ID, source, Score(latent=latent, scorer="length", explainer=explainer, values={"f1": 1.0}))
        for source in ("one", "two")
        for latent in range(world.NUM_LATENTS)
        for explainer in (["fake", "human"] if (source, latent) == ("one", 4) else ["fake"])
    ]
    with context.store.writing() as connection:
        for row in rows:
            values = {c.name: getattr(row, c.name) for c in ScoreRow.__table__.columns if c.name not in ("id", "created_at")}  # fmt: skip
            connection.execute(ScoreRow.__table__.insert().values(**values))
    return context


def poison(context: RunContext, stage: str, source: str, ordinal: int) -> None:
    with context.store.writing() as connection:
        done = connection.exec_driver_sql(
            "UPDATE chunk SET state = 'poisoned', attempts = 5 WHERE stage = ? AND source = ? AND ordinal = ?",
            (stage, source, ordinal),
        )
        assert done.rowcount == 1


def retried(context: RunContext) -> tuple[set[str], dict[str, set[tuple[str, int]]]]:
    """Stages that are planned anew, and of the others the chunks that are done again."""
    assert retry_failures(context.store, world.RUN_ID, STAGES, context.folder) == 1
    planned = {kind.removeprefix("plan/") for kind in context.store.planned(world.RUN_ID)}
    again: dict[str, set[tuple[str, int]]] = {}
    for chunk in context.store.chunks(world.RUN_ID):
        assert chunk.stage in planned
        if chunk.state != ChunkState.DONE:
            again.setdefault(chunk.stage, set()).add((chunk.source, chunk.ordinal))
    return {stage.name for stage in STAGES} - planned, again


def scored(context: RunContext) -> set[tuple[str, int, str | None]]:
    return {
        (source, score.latent, score.explainer)
        for source in ("one", "two")
        for score in context.store.scores(world.RUN_ID, source)
    }


AFTER_SCORES = {"controls", "audit", "label", "substitute", "self_test", "export", "summarise", "estimate_1"}


@pytest.mark.parametrize(
    ("stage", "without"),
    [
        ("attribute", ()),
        ("attribute", ("intervene", "steer_texts")),
        ("attribute", ("attribute_rare",)),
        ("attribute_rare", ()),
        ("attribute_rare", ("intervene", "steer_texts")),
    ],
)
def test_scores_follow_the_attribution_that_chose_what_is_ablated(
    tmp_path: Path, stage: str, without: tuple[str, ...]
) -> None:
    context = finished(tmp_path, without)
    poison(context, stage, "" if stage in OF_ALL else "one", 1)
    anew, again = retried(context)
    assert anew >= {"intervene", "steer_texts", "score"} | AFTER_SCORES
    assert anew.isdisjoint({"merge", "lens", "explain", "revise_1", "write", "try_written", "screen_1", "choose"})
    assert set(again) == {stage}
    assert scored(context) == {("one", 4, "human")}, "a person's text is judged once"


def test_scores_of_a_chunk_follow_the_texts_that_were_written_for_it(tmp_path: Path) -> None:
    context = finished(tmp_path)
    poison(context, "steer_texts", "one", 1)
    anew, again = retried(context)
    assert again == {"steer_texts": {("one", 1)}, "score": {("one", 1)}, "label": {("one", 1)}}
    assert anew >= AFTER_SCORES - {"label"}
    assert anew.isdisjoint({"intervene", "score", "label", "write"})
    assert ("one", 3, "fake") not in scored(context)
    assert {("one", 2, "fake"), ("one", 6, "fake"), ("two", 3, "fake"), ("one", 4, "human")} <= scored(context)


def test_other_latents_texts_are_written_anew_where_a_strength_was_found_anew(tmp_path: Path) -> None:
    """In a latent's questions others are steered; where nobody has texts written, a chunk's scores follow it alone."""
    context = finished(tmp_path / "texts")
    poison(context, "intervene", "one", 1)
    anew, again = retried(context)
    assert {"steer_texts", "score"} <= anew
    assert again == {"intervene": {("one", 1)}}
    context = finished(tmp_path / "none", without=("steer_texts",))
    poison(context, "intervene", "one", 1)
    anew, again = retried(context)
    assert "score" not in anew
    assert again == {"intervene": {("one", 1)}, "score": {("one", 1)}, "label": {("one", 1)}}


def test_rounds_follow_explanations_that_are_planned_anew(tmp_path: Path) -> None:
    context = finished(tmp_path)
    poison(context, "lens", "one", 0)
    anew, again = retried(context)
    assert set(again) == {"lens"}
    assert {"explain", "try_1", "revise_1", "try_4", "revise_4", "try_written", "screen_1", "score"} <= anew
    assert anew.isdisjoint({"attribute", "probe", "token_change", "intervene"})


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_files_of_what_is_done_again_go_and_no_others(tmp_path: Path) -> None:
    context = finished(tmp_path)
    folder = context.folder
    of_labels = [
        touch(folder.evidence(source, kind, ordinal))
        for source in ("one", "two")
        for kind, ordinal in (("substitution", 0), ("substitution", 3), ("joint_substitution", 0))
    ] + [touch(folder.written("one", "shuffled", 0)), touch(folder.tried_written("one", "shuffled", 1))]
    texts = {number: touch(folder.evidence("one", "steered_texts", number)) for number in range(CHUNKS)}
    ablation = touch(folder.evidence("one", "ablation", 1))
    rare = touch(folder.evidence("two", "attribution_rare", 7))
    drafts = {number: touch(folder.drafts("one", number, 1)) for number in (0, 1)}
    written = [touch(folder.written("one", "labels", 1)), touch(folder.tried_written("one", "labels", 1))]
    kept = [touch(folder.evidence("one", kind, 1)) for kind in ("attribution", "token_change", "suffix", "lens")]
    poison(context, "steer_texts", "one", 1)
    retried(context)
    assert not any(path.exists() for path in of_labels[:6])
    assert all(path.exists() for path in of_labels[6:])
    assert [number for number, path in texts.items() if path.exists()] == [0, 2, 3]
    assert ablation.exists()

    context = finished(tmp_path / "second")
    for path in (ablation, rare, *texts.values(), *drafts.values(), *written, *kept):
        touch(tmp_path / "second" / path.relative_to(tmp_path))
    poison(context, "attribute", "", 0)
    retried(context)
    left = {path.name for path in (tmp_path / "second").glob("sources/*/evidence/*")}
    assert left == {path.name for path in (*drafts.values(), *written, *kept)}


class Screen(Stage):
    """A figure of each latent of a source, which may be given up."""

    name = "screened"
    queue = "gpu"
    after_all = ("sum",)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return [ChunkSpec(0, source.name) for source in context.sources]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        touch(context.folder.evidence(spec.source, self.name, 0))
        return ChunkResult()


class Sick(Screen):
    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        if spec.source == "one":
            raise MemoryError
        return super().run(context, spec, progress)


class Edit(Stage):
    """Leaves a file for a chunk that the screen did not single out, and none for the others."""

    name = "edited"
    queue = "gpu"
    after_all = ("screened",)
    leaves = ("edited",)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        if not context.folder.evidence(spec.source, "screened", 0).is_file():
            touch(context.folder.evidence(spec.source, "edited", spec.ordinal))
        return ChunkResult()


class Scores(world.ScoreFake):
    """Whether there is a file."""

    after_same = ("explain", "edited")
    writes = (ScoreRow,)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        found = float(context.folder.evidence(spec.source, "edited", spec.ordinal).is_file())
        scores = [Score(latent=latent, scorer="found", values={"f1": found}) for latent in decode_latents(spec)]
        return ChunkResult([score_row(context.run_id, spec.source, score) for score in scores])


class Explains(world.ExplainFake):
    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        texts = [Explanation(latent=latent, explainer="fake", text="x") for latent in decode_latents(spec)]
        return ChunkResult([explanation_row(context.run_id, spec.source, text) for text in texts])


def test_a_second_try_ends_like_a_run_that_was_never_broken(tmp_path: Path) -> None:
    """Scores wait for what is planned anew before them, and read nothing that the first try left."""

    def stages(screen: Stage) -> tuple[Stage, ...]:
        return (*world.STAGES[:2], screen, Explains(), Edit(), Scores())

    def found(context: RunContext) -> dict[str, list[float]]:
        return {
            source: [float(s.values["f1"] or 0) for s in context.store.scores(world.RUN_ID, source)]
            for source in ("one", "two")
        }

    context = world.open_context(tmp_path)
    for _ in range(MAX_ATTEMPTS):
        with pytest.raises(MemoryError):
            LocalDriver(context, stages(Sick()), SilentDisplay()).run()
    LocalDriver(context, stages(Sick()), SilentDisplay()).run()
    assert found(context) == {"one": [1.0] * 10, "two": [0.0] * 10}
    LocalDriver(context, stages(Screen()), SilentDisplay()).run(retry=True)
    assert found(context) == {"one": [0.0] * 10, "two": [0.0] * 10}
    assert context.store.run(world.RUN_ID).state == "done"


def test_a_round_goes_on_where_its_texts_were_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The drafts keep their labels: a file that is not there is no texts, and nothing for the user to mend."""
    context = world.open_context(tmp_path)
    spec = latent_chunks(context)[0]
    draft = Explanation(latent=1, explainer="fake", text="x")
    save_drafts(context.folder.drafts(spec.source, 0, spec.ordinal), [draft])
    monkeypatch.setattr(revise, "over_latents", lambda *_, **__: [draft])
    revise.Revise(1).run(context, spec, lambda done: None)
    assert load_drafts(context.folder.drafts(spec.source, 1, spec.ordinal)) == [draft]
