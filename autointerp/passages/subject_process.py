"""A child process that runs the subject for one that has no torch: started on the first question, replaced when it fails."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import overload

from pydantic import ValidationError

from autointerp.passages.answers import ContrastAnswer, TextAnswer
from autointerp.passages.errors import (
    SubjectBusyError,
    SubjectCrashedError,
    SubjectMemoryError,
    SubjectProcessError,
)
from autointerp.passages.lines import (
    MOST_QUESTION_BYTES,
    OUT_OF_MEMORY,
    REPLY,
    Answered,
    Failed,
    Opening,
    Ready,
    Reply,
)
from autointerp.passages.piped_child import ChildEnded, PipedChild
from autointerp.passages.questions import ContrastQuestion, Question, TextQuestion
from sae_core.errors import InputError

_COMMAND = (sys.executable, "-m", "autointerp.passages.child")


class SubjectProcess:
    """Asks about the passages of one run. Threads may share one: questions are answered one at a time.

    The child is started by the first question, and again by the next one after it failed or had ended itself. It ends with the
    process that started it, since it ends when its input is closed.
    """

    def __init__(
        self,
        run: str,
        store: str | None = None,
        *,
        answer_s: float = 120.0,
        start_s: float = 600.0,
        idle_s: float = 600.0,
        command: Sequence[str] = _COMMAND,
    ) -> None:
        """Nothing is started yet.

        Args:
            run: an output folder, a run id, or the beginning of one.
            store: store in which to look for a run id.
            answer_s: time for an answer, and for the questions before it.
            start_s: time for loading the subject.
            idle_s: time without a question after which the child ends itself.
            command: what is started.
        """
        self._opening = Opening(run=run, store=store, idle_s=idle_s)
        self._answer_s, self._start_s = answer_s, start_s
        self._command = tuple(command)
        self._lock = threading.Lock()
        self._child: PipedChild | None = None
        self._closed = False

    def __enter__(self) -> SubjectProcess:
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

    @overload
    def ask(self, question: TextQuestion) -> TextAnswer: ...

    @overload
    def ask(self, question: ContrastQuestion) -> ContrastAnswer: ...

    def ask(self, question: Question) -> TextAnswer | ContrastAnswer:
        """The child's answer.

        Raises:
            SubjectProcessError: it gave none; which of the classes says why.
            AutointerpError: what :func:`~autointerp.passages.search_text` and :func:`~autointerp.passages.search_contrast` raise.
        """
        question.check()
        line = question.model_dump_json().encode() + b"\n"
        if len(line) > MOST_QUESTION_BYTES:
            raise InputError(
                f"the passages have more than {MOST_QUESTION_BYTES >> 20} MiB together: give fewer of them."
            )
        if not self._lock.acquire(timeout=self._answer_s):
            raise SubjectBusyError(
                f"questions of others have kept the subject for {self._answer_s:,.0f} s: ask again in a while."
            )
        try:
            reply = self._reply(line)
        finally:
            self._lock.release()
        if isinstance(reply, Failed):
            raise reply.as_error()
        return reply.answer

    def close(self) -> None:
        """End the child; a question under way gets an error, and so does every later one."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._end()

    def _reply(self, line: bytes) -> Answered | Failed:
        if self._child is not None and self._child.has_ended:
            self._end()
        while True:  # at most twice, since the second child is fresh
            fresh = self._child is None
            try:
                child = self._child or self._start()
                reply = _understood(child.ask(line, self._answer_s, "answered"))
                if not isinstance(reply, Answered | Failed):
                    raise SubjectCrashedError("the process that runs the subject said what is no answer: ask again.")
                if isinstance(reply, Failed) and reply.error == OUT_OF_MEMORY:
                    raise SubjectMemoryError(
                        "the memory does not suffice for these passages beside the subject: give fewer or shorter ones."
                    )
                return reply
            except ChildEnded as ended:
                self._end()
                if fresh or ended.code != 0:
                    raise self._failure(ended) from None
                # it had been idle for long, and was about to end when it was asked
            except _NotStarted as refused:
                self._end()
                return refused.reply
            except BaseException:
                self._end()  # a reply may be under way, which must not be taken for the next question's
                raise

    def _start(self) -> PipedChild:
        self._child = child = PipedChild(self._command)
        if self._closed:  # who closed it may have come before there was a child to end
            child.kill()
        reply = _understood(child.ask(self._opening.model_dump_json().encode() + b"\n", self._start_s, "loaded"))
        if isinstance(reply, Failed):
            if reply.error == OUT_OF_MEMORY:
                raise SubjectMemoryError("the memory does not suffice for the subject: use a machine with more.")
            raise _NotStarted(reply)
        if not isinstance(reply, Ready):
            raise SubjectCrashedError("the process that runs the subject said what is no greeting: ask again.")
        return child

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _failure(self, ended: ChildEnded) -> SubjectProcessError:
        if self._closed:
            return SubjectProcessError("the process that runs the subject was closed: open another one.")
        if ended.code == -signal.SIGKILL:
            return SubjectMemoryError(
                "the process that runs the subject was killed, most likely because the machine's memory ran out: give fewer or "
                "shorter passages, or use a machine with more."
            )
        said = f" ({ended.last_words})" if ended.last_words else ""
        how = f"by signal {-ended.code}" if ended.code < 0 else f"with status {ended.code}"
        return SubjectCrashedError(f"the process that runs the subject ended {how}{said}: ask again.")


class _NotStarted(Exception):
    """The child cannot load the subject, and says why."""

    def __init__(self, reply: Failed) -> None:
        super().__init__(reply)
        self.reply = reply


def _understood(line: bytes) -> Reply:
    """Errors: SubjectCrashedError."""
    try:
        return REPLY.validate_json(line)
    except ValidationError as error:
        raise SubjectCrashedError("the process that runs the subject said what is no answer: ask again.") from error
