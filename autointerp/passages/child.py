"""``python -m autointerp.passages.child``: runs the subject of one run for a process that has no torch.

It reads lines of JSON and writes one for each (:mod:`autointerp.passages.lines`), and ends itself when its input is closed,
also in the middle of a question, or when nobody has asked for a while.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO

from pydantic import ValidationError

from autointerp.passages.answers import ContrastAnswer, TextAnswer
from autointerp.passages.contrast import search_contrast
from autointerp.passages.lines import MOST_QUESTION_BYTES, OUT_OF_MEMORY, Answered, Failed, Opening, Ready, Reply
from autointerp.passages.questions import QUESTION, Question, TextQuestion
from autointerp.passages.text import search_text
from autointerp.pipeline.context import RunContext
from sae_core.errors import AutointerpError, InputError

_BLOCK_BYTES = 1 << 16


def main() -> None:
    """Answer until nobody asks any more."""
    # what a library prints must not get among the replies
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    lines: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_lines, args=(0, lines), daemon=True).start()
    opening = Opening.model_validate_json(lines.get())
    try:
        context = _open(opening)
    except AutointerpError as error:
        _say(replies, Failed(error=type(error).__name__, message=str(error)))
        return
    except (MemoryError, RuntimeError) as error:
        _say(replies, _out_of_memory(error))
        return
    _say(replies, Ready())
    while True:
        try:
            line = lines.get(timeout=opening.idle_s)
        except Empty:
            return
        try:
            answer: Reply = Answered(answer=answer_question(context, QUESTION.validate_json(line)))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            answer = Failed(
                error=InputError.__name__, message=f"a question about passages is wrong at {place!r}: {first['msg']}."
            )
        except AutointerpError as error:
            answer = Failed(error=type(error).__name__, message=str(error))
        except (MemoryError, RuntimeError) as error:
            answer = _out_of_memory(error)
        _say(replies, answer)


def answer_question(context: RunContext, question: Question) -> TextAnswer | ContrastAnswer:
    """Ask the run itself, in this process."""
    return search_text(context, question) if isinstance(question, TextQuestion) else search_contrast(context, question)


def _open(opening: Opening) -> RunContext:
    """The run with its subject loaded."""
    from autointerp.pipeline.finding import find_run
    from autointerp.pipeline.starting import open_run

    store, run_id = find_run(opening.run, opening.store)
    folder = Path(opening.run)
    context = open_run(store, run_id, folder if folder.is_dir() else None)
    _ = context.subject
    return context


def _out_of_memory(error: MemoryError | RuntimeError) -> Failed:
    """The reply where memory did not suffice; what else goes wrong is an error of this program, and ends it."""
    import torch

    # torch's allocator for the host has no exception of its own
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "not enough memory" in str(error):
        return Failed(error=OUT_OF_MEMORY, message="the memory does not suffice.")
    raise error


def _say(replies: BinaryIO, reply: Reply) -> None:
    left = memoryview(reply.model_dump_json().encode() + b"\n")
    while left:
        left = left[replies.write(left) :]


def _read_lines(source: int, lines: SimpleQueue[bytes]) -> None:
    """Put every line of a file descriptor on the queue; at its end this process is not needed any more."""
    waiting = bytearray()
    while block := os.read(source, _BLOCK_BYTES):
        waiting += block
        if b"\n" in block:
            *whole, waiting = waiting.split(b"\n")
            for line in whole:
                lines.put(bytes(line))
        if len(waiting) > MOST_QUESTION_BYTES:
            break
    os._exit(0)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    # the thread that reads cannot be ended, and nothing else is left to do
    os._exit(0)
