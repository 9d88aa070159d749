"""A stage beside the others: its thread and the main one end each other, and neither leaves a chunk claimed."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from autointerp.pipeline.driver import LocalDriver
from autointerp.pipeline.execution import Outcome, execute
from autointerp.pipeline.reconciler import Reconciler
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, NotThere, Progress, Stage
from autointerp.progress import SilentDisplay
from autointerp.store import ChunkState
from sae_core.errors import CorpusError
from tests import pipeline_world as world

_PATIENCE_S = 20.0


class Writer(Stage):
    """Writes three lines, one after the other."""

    name = "writer"
    queue = "gpu"
    beside = True

    def plan(self, context: world.RunContext) -> list[ChunkSpec]:
        return [ChunkSpec(0, units=3)]

    def run(self, context: world.RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        for number in range(3):
            self.write(context, number, progress)
        return ChunkResult()

    def write(self, context: world.RunContext, number: int, progress: Progress) -> None:
        place(context, number).touch()
        progress(number + 1)


class Reader(Stage):
    """Reads each line as soon as it is there; the order in which it does is kept."""

    name = "reader"
    queue = "gpu"

    def plan(self, context: world.RunContext) -> list[ChunkSpec]:
        return [ChunkSpec(number) for number in range(3)]

    def can_begin(self, context: world.RunContext, spec: ChunkSpec) -> bool:
        return place(context, spec.ordinal).exists()

    def run(self, context: world.RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        place(context, spec.ordinal).with_suffix(".read").touch()
        return ChunkResult()


def place(context: world.RunContext, number: int) -> Path:
    return context.folder.root / f"{number}.line"


def until(what: object) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.005)


def states(context: world.RunContext) -> list[tuple[str, int, str, int, str]]:
    return [(c.stage, c.ordinal, str(c.state), c.attempts, c.owner) for c in context.store.chunks(world.RUN_ID)]


def test_each_line_is_read_before_the_next_is_written(tmp_path: Path) -> None:
    class Patient(Writer):
        def write(self, context: world.RunContext, number: int, progress: Progress) -> None:
            super().write(context, number, progress)
            until(place(context, number).with_suffix(".read").exists)

    context = world.open_context(tmp_path)
    before = threading.active_count()
    assert LocalDriver(context, (Patient(), Reader()), SilentDisplay()).run()
    assert {state for _, _, state, _, _ in states(context)} == {"done"}
    assert threading.active_count() == before


def test_an_error_beside_is_raised_and_the_chunk_in_hand_given_back(tmp_path: Path) -> None:
    at_work = threading.Event()

    class Bad(Writer):
        def write(self, context: world.RunContext, number: int, progress: Progress) -> None:
            super().write(context, number, progress)
            if number == 1:
                at_work.wait(_PATIENCE_S)
                raise self.error

    class Slow(Reader):
        def run(self, context: world.RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
            if spec.ordinal == 1:
                at_work.set()
                until(lambda: progress(0))
            return super().run(context, spec, progress)

    for number, (error, first, writer) in enumerate(
        ((CorpusError("no text: give some."), "ready", "failed"), (ZeroDivisionError("a bug"), "done", "ready"))
    ):
        at_work.clear()
        context = world.open_context(tmp_path / str(number))
        stages = (type("BadOne", (Bad,), {"error": error})(), Slow())
        with pytest.raises(type(error), match=str(error)):
            LocalDriver(context, stages, SilentDisplay()).run()
        # what was done ahead of something that the user is to mend is done again, and an attempt at it is forgotten
        assert states(context) == [
            ("reader", 0, first, int(first == "done"), ""),
            ("reader", 1, "ready", 0, ""),
            ("reader", 2, "ready", 0, ""),
            ("writer", 0, writer, 1, ""),
        ]


def test_an_error_in_the_main_thread_ends_what_is_beside(tmp_path: Path) -> None:
    class Endless(Writer):
        def write(self, context: world.RunContext, number: int, progress: Progress) -> None:
            super().write(context, number, progress)
            until(lambda: progress(1))

    class Bad(Reader):
        def run(self, context: world.RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
            raise ZeroDivisionError

    context = world.open_context(tmp_path)
    with pytest.raises(ZeroDivisionError):
        LocalDriver(context, (Endless(), Bad()), SilentDisplay()).run()
    assert [s for s in states(context) if s[0] == "writer"] == [("writer", 0, "ready", 0, "")]


def test_two_threads_load_one_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_core.subject import SubjectModel

    loads: list[str] = []

    class Loaded:
        revision = "0"

    def load(model: str, **_settings: object) -> Loaded:
        loads.append(model)
        time.sleep(0.2)
        return Loaded()

    monkeypatch.setattr(SubjectModel, "load", load)
    context = world.open_context(tmp_path)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(context.subject)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["fake"]
    assert len({id(subject) for subject in found}) == 1


def test_a_chunk_whose_input_has_gone_is_given_back(tmp_path: Path) -> None:
    class Gone(Reader):
        def run(self, context: world.RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
            raise NotThere

    context = world.open_context(tmp_path)
    stages = (Gone(),)
    Reconciler(context, stages).release()
    chunk = context.store.chunks(world.RUN_ID, ChunkState.READY)[0]
    assert execute(chunk.id, context, stages) is Outcome.EARLY
    assert states(context)[0] == ("reader", 0, "ready", 0, "")
