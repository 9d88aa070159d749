"""``python -m autointerp.browsing.embedder_child``: embeds words, and the labels of dictionaries, for a process that has no model in it.

It reads lines of JSON and writes one for each (:mod:`autointerp.browsing.embedder_lines`), and ends itself when its input is closed or
when nobody has asked for a while. Steps are seconds long, so it outlives whoever asked by no more than that.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from autointerp.browsing.embedder_lines import (
    OUT_OF_MEMORY,
    QUESTION,
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
from autointerp.browsing.making_meanings import MakingProgress, make_meanings
from autointerp.sentence_embedding import Embedder, local_embedder
from sae_core.errors import AutointerpError, DiskFullError, StoreError

_GENTLY = 10
"""Steps of priority that are given up."""


def main(load: Callable[[], Embedder] = local_embedder) -> None:
    """Answer until nobody asks any more."""
    questions = os.fdopen(0, "rb", buffering=0)
    # what a library prints must not get among the replies
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    opening = Opening.model_validate_json(questions.readline())
    if opening.gently:
        os.nice(_GENTLY)
    try:
        answers = _Answers(load())
    except (AutointerpError, MemoryError, OSError) as error:
        _say(replies, _failed(error))
        return
    _say(replies, Ready())
    while select.select([questions], [], [], opening.idle_s)[0]:
        line = questions.readline()
        if not line:
            return
        try:
            reply = answers.to(QUESTION.validate_json(line))
        except (AutointerpError, MemoryError, OSError) as error:
            reply = _failed(error)
        _say(replies, reply)


class _Answers:
    """A model, and what is being made with it."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._steps: Iterator[MakingProgress] = iter(())
        self._of: MakeQuestion | None = None
        self._last = MakingProgress(0, 0)

    def to(self, question: Question) -> Reply:
        """Errors: as making has them."""
        if isinstance(question, EmbedQuestion):
            return Embedded(vector=self._embedder.embed([question.text])[0].tolist())
        if question != self._of:
            self._steps = make_meanings(Path(question.dictionary), Path(question.folder), self._embedder)
            self._of = question
        try:
            self._last = next(self._steps)
        except StopIteration:
            self._of = None
            return Making(done=self._last.done, total=self._last.total, finished=True)
        except BaseException:
            self._of = None  # asked again, it begins with what was kept
            raise
        return Making(done=self._last.done, total=self._last.total, finished=False)


def _failed(error: AutointerpError | MemoryError | OSError) -> Failed:
    if isinstance(error, AutointerpError):
        return Failed(error=type(error).__name__, message=str(error))
    if isinstance(error, MemoryError):
        return Failed(error=OUT_OF_MEMORY, message="the memory does not suffice.")
    if error.errno == errno.ENOSPC:
        return Failed(error=DiskFullError.__name__, message="there is no room left for the vectors of the labels.")
    said = f"the labels could not be read ({(error.strerror or type(error).__name__).lower()}): have them read again."
    return Failed(error=StoreError.__name__, message=said)


def _say(replies: BinaryIO, reply: Reply) -> None:
    left = memoryview(reply.model_dump_json().encode() + b"\n")
    while left:
        left = left[replies.write(left) :]


if __name__ == "__main__":
    main()
