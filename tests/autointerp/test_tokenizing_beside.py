"""Extraction begins while the corpus is still read, and nothing of what comes out can be told from a run that had it all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autointerp import cli
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.interruption import Interrupted
from autointerp.progress import PlainDisplay, SilentDisplay
from autointerp.store import ChunkState
from sae_core.errors import CorpusError, StoreError
from sae_core.tokens import TokenCorpus
from tests import planted_world
from tests.autointerp import growing_world as growing

ROOT = Path(__file__).parents[2]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration on a planted world; no corpus is taken from another run's cache."""
    planted_world.build(tmp_path, num_documents=80)
    monkeypatch.setenv("AUTOINTERP_CACHE_GIB", "0")
    (tmp_path / "run.toml").write_text(growing.CONFIG)
    return tmp_path / "run.toml"


@pytest.fixture
def whole(world: Path) -> dict[str, bytes]:
    """The stores of a run whose corpus was there from the start (it is too small for a word of its journal)."""
    growing.run(world, world.parent / "whole")
    return growing.stores(world.parent / "whole")


def states(context: RunContext) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for chunk in context.store.chunks(context.run_id):
        found.setdefault(chunk.stage, set()).add(chunk.state)
        assert (chunk.owner == "") == (chunk.state != ChunkState.RUNNING)
    return found


def open_again(world: Path, out: Path) -> RunContext:
    from autointerp.config import load_config
    from autointerp.pipeline.starting import start_run

    return start_run(load_config(world, []), "x", out).context


def test_extraction_begins_while_the_text_is_read_and_changes_nothing(world: Path, whole: dict[str, bytes]) -> None:
    out = world.parent / "out"
    whole_there: list[bool] = []
    with growing.waiting_reader(out, lambda: whole_there.append(TokenCorpus.exists(out / "corpus"))):
        context = growing.run(world, out)
    assert whole_there == [False], "the first partial was there before the corpus"
    assert growing.stores(out) == whole
    assert len([name for name in whole if "pool-" in name]) == 6
    chunks = context.store.chunks(context.run_id)
    assert {chunk.attempts for chunk in chunks} == {1}
    shards = [chunk for chunk in chunks if chunk.stage == "extract"]
    assert [chunk.planned_units for chunk in shards] == [1500] * 4


def test_passes_over_a_growing_corpus_change_nothing(world: Path, whole: dict[str, bytes]) -> None:
    out = world.parent / "out"
    with growing.waiting_reader(out):
        growing.run(world, out, "extraction.latents_per_pass=5")
    assert growing.stores(out) == whole


class Lines(SilentDisplay):
    """Keeps what is told, and makes a file when it hears that another process is waited for."""

    def __init__(self, waiting: Path) -> None:
        self.notes: list[str] = []
        self.stages: set[str] = set()
        self._waiting = waiting

    def advance(self, stage: str, units_in_chunk: int) -> None:
        self.stages.add(stage)

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)
        if sentence.startswith("waiting for tokenize"):
            self._waiting.touch()


@pytest.mark.long
def test_another_process_tokenizes_and_is_killed(world: Path, whole: dict[str, bytes]) -> None:
    """This one extracts what that one has written, takes the text over and ends like an unbroken run."""
    out = world.parent / "out"
    open_again(world, out).store.close()
    go = world.parent / "go"
    command = [sys.executable, "-m", "tests.autointerp.growing_world", str(world), str(out), str(go)]
    other = subprocess.Popen(command, cwd=ROOT)
    growing.wait_for(lambda: growing.chunks_of(out, "tokenize", "running") == 1)
    display = Lines(go)
    context = growing.run(world, out, display=display)
    assert other.wait(timeout=60) == -signal.SIGKILL
    assert any(note.startswith(f"waiting for tokenize 0, which process {other.pid}") for note in display.notes)
    assert display.stages >= {"tokenize", "extract"}
    assert growing.stores(out) == whole
    (tokenize,) = (chunk for chunk in context.store.chunks(context.run_id) if chunk.stage == "tokenize")
    assert tokenize.attempts == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.autointerp import growing_world as growing
config, out = map(Path, sys.argv[1:])
with growing.waiting_reader(out, lambda: os.kill(os.getpid(), signal.SIGKILL)):
    growing.run(config, out)
"""


def kill_in_the_middle(world: Path, out: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(world), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert growing.first_partial(out).exists()
    assert not TokenCorpus.exists(out / "corpus")


@pytest.mark.long
def test_a_process_that_is_killed_at_both_goes_on_with_the_same_result(world: Path, whole: dict[str, bytes]) -> None:
    out = world.parent / "out"
    kill_in_the_middle(world, out)
    before = growing.first_partial(out).stat().st_mtime_ns
    context = growing.run(world, out)
    assert growing.stores(out) == whole
    assert growing.first_partial(out).stat().st_mtime_ns == before, "what was extracted stays"
    assert set.union(*states(context).values()) == {ChunkState.DONE}


@pytest.mark.long
def test_a_text_that_changes_after_a_kill_is_refused(world: Path) -> None:
    out = world.parent / "out"
    kill_in_the_middle(world, out)
    corpus = world.parent / "corpus.jsonl"
    rows = corpus.read_text().splitlines()
    words = json.loads(rows[0])["text"].split()
    corpus.write_text("\n".join([json.dumps({"text": " ".join(reversed(words))}), *rows[1:]]) + "\n")
    with pytest.raises(StoreError, match=r"corpus\.path .* gives another text now than when the run .* began: choose"):
        growing.run(world, out)


def test_a_signal_ends_both_and_gives_both_back(world: Path, whole: dict[str, bytes]) -> None:
    out = world.parent / "out"
    with (
        growing.waiting_reader(out, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        pytest.raises(Interrupted) as caught,
    ):
        growing.run(world, out)
    assert caught.value.signal_number == signal.SIGTERM
    context = open_again(world, out)
    assert states(context)["tokenize"] == {ChunkState.READY}
    assert set.union(*states(context).values()) <= {ChunkState.READY, ChunkState.DONE}
    assert all(chunk.attempts == (chunk.state == ChunkState.DONE) for chunk in context.store.chunks(context.run_id))
    growing.run(world, out)
    assert growing.stores(out) == whole


HANGING = """
import sys, time
from pathlib import Path
from autointerp import cli
from tests.autointerp import growing_world as growing
config, out = map(Path, sys.argv[1:])
sys.argv = ["autointerp", "run", str(config), "--out", str(out)]
with growing.waiting_reader(out, lambda: (print("hangs", flush=True), time.sleep(600))):
    cli.main()
"""


@pytest.mark.long
def test_a_second_signal_does_not_wait_for_a_read_that_hangs(world: Path, whole: dict[str, bytes]) -> None:
    out = world.parent / "out"
    command = [sys.executable, "-c", HANGING, str(world), str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "hangs\n"
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if line.startswith("stopping after the step in hand"):
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert "Stopped. Run the same command again" in process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    growing.run(world, out)
    assert growing.stores(out) == whole


def command_line(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["autointerp", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.parametrize("damage", ["short", "broken"])
def test_a_corpus_that_turns_out_bad_ends_a_new_run_and_leaves_nothing(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    out, corpus = world.parent / "out", world.parent / "corpus.jsonl"
    if damage == "broken":
        corpus.write_text("\n".join([*corpus.read_text().splitlines()[:50], '{"text": 3', ""]))
    sets = ["--set", "extraction.num_tokens=600000"] if damage == "short" else []
    with growing.waiting_reader(out):
        assert command_line(monkeypatch, "run", world, "--out", out, *sets) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("autointerp: ")]
    assert len(errors) == 1
    assert ("set extraction.num_tokens to at most" if damage == "short" else "corpus.jsonl, line 51") in errors[0]
    assert not out.exists()


def test_a_corpus_that_turns_out_bad_leaves_a_run_that_can_be_mended(world: Path, whole: dict[str, bytes]) -> None:
    out, corpus = world.parent / "out", world.parent / "corpus.jsonl"
    good = corpus.read_text()
    corpus.write_text("\n".join([*good.splitlines()[:50], '{"text": 3', ""]))
    with growing.waiting_reader(out), pytest.raises(CorpusError, match=r"corpus\.jsonl, line 51"):
        growing.run(world, out)
    context = open_again(world, out)
    assert states(context) == {
        "tokenize": {ChunkState.FAILED},
        "directions": {ChunkState.READY},
        "extract": {ChunkState.READY},
    }
    corpus.write_text(good)
    growing.run(world, out)
    assert growing.stores(out) == whole


def test_a_corpus_that_is_gone_is_a_sentence(world: Path) -> None:
    """It is not waited for."""
    import shutil

    from autointerp.pipeline.shards import is_there, read_shard

    context = growing.run(world, world.parent / "out")
    shutil.rmtree(context.folder.corpus)
    assert is_there(context, 0)
    with pytest.raises(StoreError, match=r"the corpus of the run .* is gone from .*: choose another --out"):
        read_shard(context, 0)


def test_both_are_shown() -> None:
    from autointerp.store.store import StageCount

    lines: list[str] = []
    clock = iter(range(0, 1000, 3))
    shown = PlainDisplay(lines.append, {"tokenize": "tokens", "extract": "tokens"}, lambda: float(next(clock)))
    running = [StageCount(name, ChunkState.RUNNING, 1, 6000, 0.0) for name in ("tokenize", "extract")]
    shown.totals(running)
    for done in range(0, 3000, 300):
        shown.advance("tokenize", 2 * done)
        shown.advance("extract", done)
    assert {line.split(":")[0] for line in lines} == {"tokenize", "extract"}
