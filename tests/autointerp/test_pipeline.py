"""Chunks are done once, in order, whatever happens to the processes that do them."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autointerp.pipeline.driver import LocalDriver
from autointerp.pipeline.execution import Outcome, execute
from autointerp.pipeline.interruption import Interrupted
from autointerp.pipeline.reconciler import Reconciler
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, encode_latents
from autointerp.progress import SilentDisplay
from autointerp.store import MAX_ATTEMPTS, ChunkState, LabelStore, open_store
from autointerp.store.opening import sqlite_url
from sae_core.errors import DiskFullError, StoreError
from tests import pipeline_world as world

ROOT = Path(__file__).parents[2]


def child(out: Path, fault: str = "", *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AUTOINTERP_FAULT": fault}
    command = [sys.executable, "-m", "tests.pipeline_world", str(out), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)


def run_all(out: Path, stages: tuple[Stage, ...] = world.STAGES) -> LabelStore:
    context = world.open_context(out)
    LocalDriver(context, stages, SilentDisplay()).run()
    return context.store


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return world.final_tables(run_all(tmp_path_factory.mktemp("unbroken")))


def test_an_unbroken_run_does_every_latent_once(unbroken: dict[str, object]) -> None:
    labels = [(latent, "labelled", f"fires on {111 + latent}") for latent in range(world.NUM_LATENTS)]
    assert unbroken["labels"] == {"one": labels, "two": labels}
    assert unbroken["total"] == {"total": 111}
    assert unbroken["run"] == "done"


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    run_all(tmp_path)
    context = world.open_context(tmp_path)
    before = [(c.id, c.fence) for c in context.store.chunks(world.RUN_ID)]
    assert LocalDriver(context, world.STAGES, SilentDisplay()).run() is False
    assert [(c.id, c.fence) for c in context.store.chunks(world.RUN_ID)] == before


@pytest.mark.parametrize(
    "fault",
    [
        "shards:after_claim:2",
        "sum:before_write:1",
        "explain:before_write:2",
        "explain:after_write:1",
        "score:after_claim:3",
        "label:before_write:1",
    ],
)
def test_a_killed_run_goes_on_at_once_and_ends_like_an_unbroken_one(
    fault: str, tmp_path: Path, unbroken: dict[str, object]
) -> None:
    killed = child(tmp_path, fault)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    started = time.monotonic()
    store = run_all(tmp_path)
    assert time.monotonic() - started < 5, "it waited for the dead process's lease"
    assert world.final_tables(store) == unbroken
    assert max(chunk.attempts for chunk in store.chunks(world.RUN_ID)) == (1 if "after_write" in fault else 2)
    assert not list(tmp_path.glob(".*"))


def test_two_processes_share_a_run(tmp_path: Path, unbroken: dict[str, object]) -> None:
    world.open_context(tmp_path).store.close()
    command = [sys.executable, "-m", "tests.pipeline_world", str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    store = open_store(sqlite_url(tmp_path / "autointerp.db"))
    assert world.final_tables(store) == unbroken
    assert {chunk.attempts for chunk in store.chunks(world.RUN_ID)} == {1}


class Fragile(Stage):
    """One chunk that does what a test asks."""

    name = "fragile"
    queue = "gpu"

    def plan(self, context: world.RunContext) -> list[ChunkSpec]:
        return [ChunkSpec(0, units=10)]

    def run(self, context: world.RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        return self.behave(progress)

    def behave(self, progress: Progress) -> ChunkResult:
        return ChunkResult()


def fragile(behaviour: object) -> tuple[Stage, ...]:
    return (type("Now", (Fragile,), {"behave": lambda self, progress: behaviour(progress)})(),)  # type: ignore[operator]


def only_chunk(store: LabelStore) -> tuple[str, int, str | None]:
    (chunk,) = store.chunks(world.RUN_ID)
    return chunk.state, chunk.attempts, chunk.error


def test_a_mendable_error_leaves_the_chunk_failed_and_the_next_start_tries_anew(tmp_path: Path) -> None:
    def refuse(progress: Progress) -> ChunkResult:
        raise OSError(28, "No space left on device")

    context = world.open_context(tmp_path)
    with pytest.raises(DiskFullError, match="free some space"):
        LocalDriver(context, fragile(refuse), SilentDisplay()).run()
    state, _, error = only_chunk(context.store)
    assert state == ChunkState.FAILED
    assert error is not None
    assert "no room left" in error
    LocalDriver(context, fragile(lambda progress: ChunkResult()), SilentDisplay()).run()
    assert only_chunk(context.store) == (ChunkState.DONE, 1, None)


def test_any_other_exception_is_stored_counted_and_raised(tmp_path: Path) -> None:
    def break_down(progress: Progress) -> ChunkResult:
        raise ZeroDivisionError("a bug")

    context = world.open_context(tmp_path)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        with pytest.raises(ZeroDivisionError):
            LocalDriver(context, fragile(break_down), SilentDisplay()).run()
        assert only_chunk(context.store) == (ChunkState.READY, attempt, "ZeroDivisionError: a bug")
    with pytest.raises(StoreError, match="has ended its process 5 times; its last error: ZeroDivisionError: a bug"):
        LocalDriver(context, fragile(break_down), SilentDisplay()).run()
    assert only_chunk(context.store)[0] == ChunkState.POISONED
    LocalDriver(context, fragile(lambda progress: ChunkResult()), SilentDisplay()).run(retry=True)
    assert only_chunk(context.store)[0] == ChunkState.DONE


def test_a_poisoned_chunk_that_is_not_essential_fails_its_latents_only(tmp_path: Path) -> None:
    class Poison(world.ExplainFake):
        def run(self, context: world.RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
            if spec.source == "one" and spec.ordinal == 1:
                raise MemoryError
            return super().run(context, spec, progress)

    context = world.open_context(tmp_path)
    stages = (*world.STAGES[:2], Poison(), *world.STAGES[3:])
    for _ in range(MAX_ATTEMPTS):
        with pytest.raises(MemoryError):
            LocalDriver(context, stages, SilentDisplay()).run()
    LocalDriver(context, stages, SilentDisplay()).run()
    failed = {
        (s, row.latent)
        for s in ("one", "two")
        for row in context.store.labels(world.RUN_ID, s)
        if row.status == "failed"
    }
    assert failed == {("one", 3), ("one", 4), ("one", 5)}
    assert context.store.run(world.RUN_ID).state == "done"


def test_an_interrupt_gives_the_chunk_back_uncounted(tmp_path: Path) -> None:
    def interrupted(progress: Progress) -> ChunkResult:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        progress(1)
        return ChunkResult()

    context = world.open_context(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        LocalDriver(context, fragile(interrupted), SilentDisplay()).run()
    assert caught.value.signal_number == signal.SIGTERM
    assert only_chunk(context.store) == (ChunkState.READY, 0, None)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_to_the_process_ends_it_with_its_code(tmp_path: Path, unbroken: dict[str, object]) -> None:
    code = (
        "import sys, time; from tests import pipeline_world as w\n"
        "slow = w.ExplainFake.run\n"
        "w.ExplainFake.run = lambda s, c, p, g: (print('there', flush=True), time.sleep(0.5), slow(s, c, p, g))[2]\n"
        "sys.exit(w.main(sys.argv[1:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    process.stdout.close()
    assert world.final_tables(run_all(tmp_path)) == unbroken


def test_a_late_write_after_a_takeover_changes_nothing(tmp_path: Path) -> None:
    context = world.open_context(tmp_path)
    taken = threading.Event()

    class Slow(world.ExplainFake):
        after_all = ()

        def run(self, inner: world.RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
            if not taken.is_set():  # the first worker sleeps past its lease; the second one finishes meanwhile
                taken.set()
                with context.store.writing() as connection:
                    connection.exec_driver_sql("UPDATE chunk SET lease_until = 0")
                assert execute(chunk_id, inner, stages) is Outcome.DONE
            return super().run(inner, spec, progress)

    stages = (Slow(),)
    context.store.plan(world.RUN_ID, "sum", [])
    with context.store.writing() as connection:
        connection.exec_driver_sql(
            "INSERT INTO artefact (run_id, kind, version, value, created_at) VALUES (?, 'total', 1, '{\"total\":0}', '')",
            (world.RUN_ID,),
        )
    Reconciler(context, stages).release()
    chunk_id = context.store.ready(world.RUN_ID, ["explain"])[0]
    assert execute(chunk_id, context, stages) is Outcome.FENCED
    assert [e.latent for e in context.store.explanations(world.RUN_ID, "one")] == [0, 1, 2]
    chunk = next(c for c in context.store.chunks(world.RUN_ID) if c.id == chunk_id)
    assert (chunk.state, chunk.fence, chunk.attempts) == (ChunkState.DONE, 2, 2)
    assert execute(chunk_id, context, stages) is Outcome.HELD


def test_the_lease_is_renewed_while_a_chunk_runs(tmp_path: Path) -> None:
    lease_s = 0.3
    seen: list[float] = []

    def long_work(progress: Progress) -> ChunkResult:
        time.sleep(3 * lease_s)
        (chunk,) = context.store.chunks(world.RUN_ID)
        seen.append(chunk.lease_until - time.time())
        assert execute(chunk.id, context, fragile(lambda p: ChunkResult())) is Outcome.HELD
        return ChunkResult()

    context = world.open_context(tmp_path)
    LocalDriver(context, fragile(long_work), SilentDisplay(), lease_s=lease_s).run()
    assert 0 < seen[0] <= lease_s


@pytest.mark.parametrize(
    ("latents", "encoded"), [([3, 4, 5], "3:6"), ([7], [7]), ([0, 2, 3], [0, 2, 3]), ([0, 1], "0:2")]
)
def test_latents_survive_their_encoding(latents: list[int], encoded: object) -> None:
    assert encode_latents(latents) == encoded
    from autointerp.pipeline.stage import decode_latents

    assert decode_latents(ChunkSpec(0, payload={"latents": encoded})) == latents


def test_retry_does_poisoned_chunks_and_what_followed_them_again(tmp_path: Path, unbroken: dict[str, object]) -> None:
    """The chunk was given up and the run ended without it; a second try ends like an unbroken run."""
    from autointerp.store.models import ExplanationRow, LabelRow, ScoreRow

    shards, total, explain, score, label = world.STAGES

    class Sick(world.ExplainFake):
        def run(self, context: world.RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
            if (spec.source, spec.ordinal) == ("one", 1):
                raise ZeroDivisionError
            return super().run(context, spec, progress)

    def stages(first: type[Stage]) -> tuple[Stage, ...]:
        tables = ((first, ExplanationRow), (type(score), ScoreRow), (type(label), LabelRow))
        return (shards, total, *(type(kind.__name__, (kind,), {"writes": (table,)})() for kind, table in tables))

    for _ in range(MAX_ATTEMPTS):
        with pytest.raises(ZeroDivisionError):
            LocalDriver(world.open_context(tmp_path), stages(Sick), SilentDisplay()).run()
    context = world.open_context(tmp_path)
    LocalDriver(context, stages(Sick), SilentDisplay()).run()
    assert context.store.run(world.RUN_ID).state == "done"
    assert [c.state for c in context.store.chunks(world.RUN_ID, ChunkState.POISONED)] == ["poisoned"]
    LocalDriver(context, stages(type(explain)), SilentDisplay()).run(retry=True)
    assert world.final_tables(context.store) == unbroken


@pytest.mark.parametrize("where", ["explain", "score", "in part"])
def test_retry_gives_back_what_a_server_failed_and_leaves_a_person_s_text(
    tmp_path: Path, unbroken: dict[str, object], where: str
) -> None:
    """A server failed at one latent and the run ended; a retry ends like an unbroken run, and another finds nothing to do."""
    from autointerp.failure import Failure, FailureKind
    from autointerp.pipeline.retrying import anything_to_retry
    from autointerp.pipeline.stage import decode_latents
    from autointerp.score import Score
    from autointerp.store.models import ExplanationRow, LabelRow, ScoreRow
    from autointerp.store.rows import score_row

    shards, total, explain, score, label = world.STAGES

    class Explains(type(explain)):  # type: ignore[misc]
        writes = (ExplanationRow,)

        def run(self, context: world.RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
            result = super().run(context, spec, progress)
            for row in result.rows:
                if ill and where == "explain" and (row.source, row.latent) == ("one", 4):
                    row.text, row.failure_kind, row.failure_message = "", "server_error", "HTTP 500"
            return ChunkResult(result.rows)

    class Scores(type(score)):  # type: ignore[misc]
        writes = (ScoreRow,)

        def run(self, context: world.RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
            rows = []
            for e in context.store.explanations(context.run_id, spec.source, decode_latents(spec)):
                if e.explainer != "fake":
                    continue
                sick = ill and (spec.source, e.latent) == ("one", 4)
                values = {"f1": 1 / len(e.text or "x")} | (
                    {"detection_failed_server_error": 20} if sick and where == "in part" else {}
                )
                failure = Failure(kind=FailureKind.TIMEOUT, message="no answer") if sick and where == "score" else None
                score = Score(latent=e.latent, scorer="length", explainer="fake", values=values, failure=failure)
                rows.append(score_row(context.run_id, spec.source, score))
            return ChunkResult(rows)

    class Labels(type(label)):  # type: ignore[misc]
        writes = (LabelRow,)

    stages = (shards, total, Explains(), Scores(), Labels())
    ill = True
    context = world.open_context(tmp_path)
    LocalDriver(context, stages, SilentDisplay()).run()
    assert context.store.run(world.RUN_ID).state == "done"
    assert world.final_tables(context.store) != unbroken
    assert anything_to_retry(context.store, world.RUN_ID)
    with sqlite3.connect(tmp_path / "autointerp.db") as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(explanation)") if row[1] != "id"]
        chosen = ", ".join("'human'" if name == "explainer" else name for name in names)
        connection.execute(
            f"INSERT INTO explanation ({', '.join(names)}) SELECT {chosen} FROM explanation WHERE source = 'one' AND latent = 3"
        )
    fences = {
        chunk.id: chunk.fence for chunk in context.store.chunks(world.RUN_ID) if chunk.stage in ("explain", "score")
    }
    ill = False
    LocalDriver(context, stages, SilentDisplay()).run(retry=True)
    after = {chunk.id: chunk.fence for chunk in context.store.chunks(world.RUN_ID) if chunk.id in fences}
    assert sum(after[number] != fence for number, fence in fences.items()) == (2 if where == "explain" else 1)
    with sqlite3.connect(tmp_path / "autointerp.db") as connection:
        assert connection.execute("DELETE FROM explanation WHERE explainer = 'human'").rowcount == 1
    assert world.final_tables(context.store) == unbroken
    assert not anything_to_retry(context.store, world.RUN_ID)
