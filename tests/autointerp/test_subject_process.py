"""The child that runs the subject: killed, broken, slow, idle, out of memory, asked by two at once. Small stand-ins obey by the passage's words."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autointerp.passages import (
    SubjectBusyError,
    SubjectCrashedError,
    SubjectMemoryError,
    SubjectProcess,
    SubjectProcessError,
    SubjectTimeoutError,
    TextQuestion,
)
from sae_core.errors import InputError, NonFiniteError, StoreError

STAND_IN = """
import json, os, signal, sys, time
opening = json.loads(sys.stdin.readline())
begins = open(opening["run"], "a")
begins.write("begun\\n"); begins.close()
def say(**line):
    sys.stdout.write(json.dumps(line) + "\\n"); sys.stdout.flush()
def fail(error, message):
    say(kind="failed", error=error, message=message)
if opening["store"] == "refuse":
    fail("StoreError", "there is no such run."); sys.exit()
if opening["store"] == "never":
    time.sleep(60)
say(kind="ready")
begun = time.monotonic()
while True:
    line = sys.stdin.readline()
    if not line:
        break
    word = json.loads(line)["texts"][0]
    if word.startswith("wait"):
        time.sleep(float(word.split()[1]))
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "crash":
        sys.stderr.write("x" * 1_000_000 + "\\n"); raise RuntimeError("the wires melted")
    if word == "exit":
        sys.exit(0)
    if word == "shout":
        sys.stderr.write("noise " * 1_000_000)
    if word == "trickle":
        while True:
            sys.stdout.write("x"); sys.stdout.flush()
    if word == "memory":
        fail("out of memory", "no room"); continue
    if word == "nan":
        fail("NonFiniteError", "the passage gives NaN."); continue
    if word == "odd":
        fail("SystemExit", "an error that is none of ours."); continue
    if word == "babble":
        sys.stdout.write("hello\\n"); sys.stdout.flush(); continue
    source = str(os.getpid()) if word != "long" else "y" * 300_000
    say(kind="answer", answer=dict(run="r", source=source, order=word[:20], passages=[], num_latents=1, num_firing=0, latents=[]))
    if word == "last":  # as a child that was idle
        sys.exit(0)
"""


class Asked:
    """A process with the stand-in as its child, and how often that was started."""

    def __init__(self, folder: Path, store: str | None = None, answer_s: float = 20.0, start_s: float = 20.0) -> None:
        self._journal = folder / "begins"
        self._journal.touch()
        program = folder / "stand_in.py"
        program.write_text(STAND_IN)
        self.process = SubjectProcess(
            str(self._journal), store, answer_s=answer_s, start_s=start_s, command=(sys.executable, "-I", str(program))
        )

    def __call__(self, text: str) -> str:
        return self.process.ask(TextQuestion(texts=(text,))).source

    @property
    def begins(self) -> int:
        return len(self._journal.read_text().splitlines())


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    one = Asked(tmp_path)
    with one.process:
        yield one


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_child_answers_many_questions_and_ends_with_its_owner(asked: Asked) -> None:
    assert (asked.process.pid, asked.begins) == (None, 0), "nothing is started before the first question"
    pid = int(asked("one"))
    assert pid == int(asked("two")) == asked.process.pid
    assert asked.begins == 1
    asked.process.close()
    assert not is_alive(pid)
    with pytest.raises(SubjectProcessError, match="closed"):
        asked("three")
    assert asked.process.pid is None


@pytest.mark.parametrize(
    ("word", "kind", "said"),
    [
        ("die", SubjectMemoryError, "killed"),
        ("crash", SubjectCrashedError, "the wires melted"),
        ("memory", SubjectMemoryError, "memory"),
        ("babble", SubjectCrashedError, "no answer"),
    ],
)
def test_a_failed_child_is_one_sentence_and_the_next_question_starts_another(
    asked: Asked, word: str, kind: type[SubjectProcessError], said: str
) -> None:
    first = int(asked("one"))
    with pytest.raises(kind, match=said) as caught:
        asked(word)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert type(pickle.loads(pickle.dumps(caught.value))) is kind
    assert not is_alive(first)
    assert int(asked("two")) != first
    assert asked.begins == 2


def test_a_child_that_was_killed_mid_question_or_between_two_is_replaced(asked: Asked) -> None:
    first = int(asked("one"))
    killer = threading.Timer(0.3, os.kill, (first, signal.SIGKILL))
    killer.start()
    with pytest.raises(SubjectMemoryError):
        asked("wait 30")
    second = int(asked("two"))
    os.kill(second, signal.SIGKILL)
    os.waitid(os.P_PID, second, os.WEXITED | os.WNOWAIT)
    assert int(asked("three")) not in (first, second)
    assert asked.begins == 3


def test_a_slow_answer_is_ended(tmp_path: Path) -> None:
    asked = Asked(tmp_path, answer_s=0.5)
    with asked.process:
        pid = int(asked("one"))
        began = time.monotonic()
        with pytest.raises(SubjectTimeoutError, match="has not answered within"):
            asked("wait 30")
        assert not is_alive(pid)
        assert int(asked("two")) != pid
        with pytest.raises(SubjectTimeoutError):
            asked("trickle")
        assert time.monotonic() - began < 15


def test_what_cannot_be_started_is_said() -> None:
    with SubjectProcess("r", command=("/no/such/program",)) as process:
        for _ in range(2):
            with pytest.raises(SubjectCrashedError, match="cannot be started"):
                process.ask(TextQuestion(texts=("one",)))


def test_a_subject_that_never_loads_or_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    for store, kind, said in (("never", SubjectTimeoutError, "loaded"), ("refuse", StoreError, "no such run")):
        asked = Asked(tmp_path, store, start_s=0.5 if store == "never" else 20.0)
        with asked.process:
            with pytest.raises(kind, match=said):
                asked("one")
            assert asked.process.pid is None


def test_an_idle_child_that_ends_when_it_is_asked_is_replaced_unseen(asked: Asked) -> None:
    first = int(asked("last"))
    second = int(asked("two"))
    assert first != second
    assert int(asked("three")) == second
    # a child that ends whenever it is asked this is not asked for ever
    with pytest.raises(SubjectCrashedError, match="ended with status 0"):
        asked("exit")
    assert asked.begins == 3
    assert int(asked("four")) != second


def test_errors_of_the_run_are_the_childs_and_leave_it_alive(asked: Asked) -> None:
    pid = int(asked("one"))
    with pytest.raises(NonFiniteError, match="gives NaN"):
        asked("nan")
    with pytest.raises(Exception, match="none of ours") as caught:
        asked("odd")
    assert type(caught.value).__name__ == "AutointerpError"
    for wrong in (TextQuestion(texts=()), TextQuestion(texts=("a" * 20_001,)), TextQuestion(texts=("a",), top=0)):
        with pytest.raises(InputError):
            asked.process.ask(wrong)
    assert int(asked("two")) == pid


def test_noise_fills_no_pipe_and_large_lines_pass(asked: Asked) -> None:
    pid = int(asked("one"))
    assert int(asked("shout")) == pid
    assert len(asked("long")) == 300_000
    question = TextQuestion(texts=tuple("\U0001f600 a" * 6_000 for _ in range(64)))
    assert len(question.model_dump_json().encode()) > 1_000_000
    assert int(asked.process.ask(question).source) == pid


def test_two_threads_at_once_get_their_own_answers(asked: Asked) -> None:
    found: dict[str, str] = {}

    def ask(word: str) -> None:
        answer = asked.process.ask(TextQuestion(texts=(word,)))
        found[word] = answer.order

    words = [f"wait 0.0{n % 3} {n}" for n in range(12)]
    threads = [threading.Thread(target=ask, args=(word,)) for word in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {word: word[:20] for word in words}
    assert asked.begins == 1


def test_who_waits_too_long_is_told_and_closing_ends_a_question(tmp_path: Path) -> None:
    asked = Asked(tmp_path, answer_s=1.0)
    asked("one")
    errors: list[Exception] = []

    def ask() -> None:
        try:
            asked("wait 30")
        except SubjectProcessError as error:
            errors.append(error)

    asked.process._answer_s = 20.0
    busy = threading.Thread(target=ask)
    busy.start()
    time.sleep(0.3)
    asked.process._answer_s = 0.2
    with pytest.raises(SubjectBusyError):
        asked("two")
    asked.process.close()
    busy.join(20)
    assert [str(error) for error in errors] == ["the process that runs the subject was closed: open another one."]


CHILD = [sys.executable, "-m", "autointerp.passages.child"]
ROOT = Path(__file__).parents[2]


def test_the_child_ends_when_its_input_is_closed_and_says_what_it_cannot_open(tmp_path: Path) -> None:
    opening = json.dumps({"run": str(tmp_path / "none"), "store": None, "idle_s": 60}) + "\n"
    environment = {name: value for name, value in os.environ.items() if name != "AUTOINTERP_STORE__URL"}
    child = subprocess.Popen(CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment)
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdin, child.stdout:
        child.stdin.write(opening.encode())
        child.stdin.flush()
        said = json.loads(child.stdout.readline())
        assert (said["kind"], said["error"]) == ("failed", "StoreError")
        assert child.wait(60) == 0
    closed = subprocess.run(CHILD, input=b"", capture_output=True, cwd=ROOT, env=environment, timeout=60, check=False)
    assert (closed.returncode, closed.stdout) == (0, b"")
