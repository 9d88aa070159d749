"""A child process that embeds for one that has no model in it: started on the first question, replaced when it fails."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from autointerp.browsing.embedder_lines import (
    MOST_CHARACTERS,
    OUT_OF_MEMORY,
    REPLY,
    Embedded,
    EmbedQuestion,
    Failed,
    MakeQuestion,
    Making,
    Opening,
    Question,
    Ready,
    Reply,
)
from autointerp.passages.errors import SubjectProcessError, SubjectTimeoutError
from autointerp.passages.piped_child import ChildEnded, PipedChild
from sae_core.errors import InputError, StoreError

COMMAND = (sys.executable, "-m", "autointerp.browsing.embedder_child")


class EmbedderError(StoreError):
    """The process that embeds gave no answer; the next question starts a new one."""


class EmbedderProcess:
    """Asks for vectors and for indexes. Threads may share one: questions are answered one at a time.

    The child is started by the first question, and again by the next one after it failed or had ended itself. It ends with the
    process that started it, since it ends when its input is closed.
    """

    def __init__(
        self,
        command: Sequence[str] = COMMAND,
        *,
        gently: bool = False,
        answer_s: float = 120.0,
        start_s: float = 120.0,
        idle_s: float = 600.0,
    ) -> None:
        """Nothing is started yet.

        Args:
            command: what is started.
            gently: whether the child gives way to other processes.
            answer_s: time for an answer, and for the questions before it.
            start_s: time for loading the model.
            idle_s: time without a question after which the child ends itself.
        """
        self._opening = Opening(idle_s=idle_s, gently=gently)
        self._answer_s, self._start_s = answer_s, start_s
        self._command = tuple(command)
        self._lock = threading.Lock()
        self._child: PipedChild | None = None
        self._closed = False

    def __enter__(self) -> EmbedderProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's, None where none was started or the last one was found to have ended."""
        child = self._child
        return None if child is None else child.process.pid

    def embed(self, words: str) -> NDArray[np.float32]:
        """[D] the vector of some words, of length 1. Errors: InputError; EmbedderError, and what loading the model raises."""
        if not words.strip() or len(words) > MOST_CHARACTERS:
            raise InputError(f"the words have {len(words):,} characters: give 1 to {MOST_CHARACTERS:,}.")
        reply = self._ask(EmbedQuestion(text=words.encode("utf-8", "replace").decode()))
        if not isinstance(reply, Embedded):
            raise _no_answer()
        return np.array(reply.vector, np.float32)

    def make(self, dictionary: Path, folder: Path) -> Making:
        """The next step of the index of ``dictionary`` in ``folder``: ask again until it is finished.

        Errors: EmbedderError, and what :func:`~autointerp.browsing.making_meanings.make_meanings` raises.
        """
        reply = self._ask(MakeQuestion(dictionary=str(dictionary.absolute()), folder=str(folder.absolute())))
        if not isinstance(reply, Making):
            raise _no_answer()
        return reply

    def close(self) -> None:
        """End the child; a question under way gets an error, and so does every later one."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._end()

    def _ask(self, question: Question) -> Reply:
        line = question.model_dump_json().encode() + b"\n"
        if not self._lock.acquire(timeout=self._answer_s):
            raise EmbedderError(
                f"questions of others have kept the embedding model for {self._answer_s:,.0f} s: ask again in a while."
            )
        try:
            reply = self._reply(line)
        finally:
            self._lock.release()
        if isinstance(reply, Failed):
            if reply.error == OUT_OF_MEMORY:
                raise EmbedderError("the memory does not suffice for the embedding model: use a machine with more.")
            raise reply.as_error()
        return reply

    def _reply(self, line: bytes) -> Reply:
        if self._child is not None and self._child.has_ended:
            self._end()
        while True:  # at most twice, since the second child is fresh
            fresh = self._child is None
            try:
                if self._child is None:
                    greeting = self._start()
                    if not isinstance(greeting, Ready):
                        self._end()
                        return greeting
                assert self._child is not None
                return _understood(self._child.ask(line, self._answer_s, "answered"))
            except ChildEnded as ended:
                self._end()
                if fresh or ended.code != 0:
                    raise self._failure(ended) from None
                # it had been idle for long, and was about to end when it was asked
            except SubjectTimeoutError as error:
                self._end()
                raise EmbedderError(
                    "the process that embeds has not answered in time and was ended: ask again."
                ) from error
            except SubjectProcessError as error:
                self._end()
                raise EmbedderError(
                    "the process that embeds cannot be started, or says what is no answer: free memory, and ask again."
                ) from error
            except BaseException:
                self._end()  # a reply may be under way, which must not be taken for the next question's
                raise

    def _start(self) -> Reply:
        self._child = child = PipedChild(self._command)
        if self._closed:  # who closed it may have come before there was a child to end
            child.kill()
        return _understood(child.ask(self._opening.model_dump_json().encode() + b"\n", self._start_s, "loaded"))

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _failure(self, ended: ChildEnded) -> EmbedderError:
        if self._closed:
            return EmbedderError("the process that embeds was closed: open another one.")
        if ended.code == -signal.SIGKILL:
            return EmbedderError(
                "the process that embeds was killed, most likely because the machine's memory ran out: ask again, or use a machine "
                "with more."
            )
        said = f" ({ended.last_words})" if ended.last_words else ""
        how = f"by signal {-ended.code}" if ended.code < 0 else f"with status {ended.code}"
        return EmbedderError(f"the process that embeds ended {how}{said}: ask again.")


def _no_answer() -> EmbedderError:
    return EmbedderError("the process that embeds said what is no answer: ask again.")


def _understood(line: bytes) -> Reply:
    """Errors: EmbedderError."""
    try:
        return REPLY.validate_json(line)
    except ValidationError as error:
        raise _no_answer() from error
