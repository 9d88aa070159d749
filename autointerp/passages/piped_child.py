"""A process at the other end of three pipes: lines to it and from it within a time, and what it says beside them."""

from __future__ import annotations

import os
import selectors
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import IO

from autointerp.passages.errors import SubjectCrashedError, SubjectTimeoutError
from autointerp.passages.lines import MOST_REPLY_BYTES
from autointerp.report.highlight import plain_line

_BLOCK_BYTES = 1 << 16
_LAST_WORDS_BYTES = 1 << 14
"""Of what the child says beside its replies, so much is kept."""
_MOST_SAID = 200
"""Characters of it in a sentence."""
_END_S = 10.0
"""Time a child has to end by itself once it has closed its output."""


class ChildEnded(Exception):
    """The child closed its output before it said what was expected."""

    def __init__(self, code: int, last_words: str) -> None:
        super().__init__(code, last_words)
        self.code, self.last_words = code, last_words


class PipedChild:
    """One process, and the lines to and from it."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it. Errors: SubjectCrashedError where the system does not."""
        try:
            # a session of its own, so that an interrupt at the terminal is its parent's to deal with
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise SubjectCrashedError(
                f"the process that runs the subject cannot be started ({error.strerror}): free memory, or end other processes."
            ) from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        for pipe in (self._stdin, self._stdout):
            os.set_blocking(pipe.fileno(), False)
        self._said = bytearray()
        self._listener = threading.Thread(target=self._listen, args=(self.process.stderr,), daemon=True)
        self._listener.start()

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def ask(self, line: bytes, timeout_s: float, done: str) -> bytes:
        """Send a line and take one. Errors: ChildEnded; SubjectTimeoutError, SubjectCrashedError where it must be ended."""
        deadline = time.monotonic() + timeout_s
        left, reply = memoryview(line), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            selector.register(self._stdin, selectors.EVENT_WRITE)
            while True:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise SubjectTimeoutError(
                        f"the process that runs the subject has not {done} within {timeout_s:,.0f} s and was ended: give fewer or "
                        "shorter passages, or ask again."
                    )
                for key, _ in selector.select(left_s):
                    if key.fileobj is self._stdin:
                        left = self._write(left)
                        if not left:
                            selector.unregister(self._stdin)
                    elif self._read(reply):
                        return bytes(reply)

    def kill(self) -> None:
        """Kill it by its number, unless it has been waited for."""
        self.process.kill()

    def end(self) -> None:
        """Kill it, and take back all that it holds."""
        self.kill()
        self.process.wait()
        self._listener.join(_END_S)
        for pipe in (self._stdin, self._stdout):
            pipe.close()

    def _write(self, left: memoryview) -> memoryview:
        try:
            return left[os.write(self._stdin.fileno(), left[:_BLOCK_BYTES]) :]
        except BlockingIOError:
            return left
        except BrokenPipeError:
            return left[:0]  # its output says that it has ended

    def _read(self, reply: bytearray) -> bool:
        """Whether the line is whole."""
        try:
            block = os.read(self._stdout.fileno(), _BLOCK_BYTES)
        except BlockingIOError:
            return False
        if not block:
            raise self._ended()
        reply += block
        if len(reply) > MOST_REPLY_BYTES:
            raise SubjectCrashedError(
                f"the answer has more than {MOST_REPLY_BYTES >> 20} MiB: give fewer or shorter passages, or ask for fewer latents."
            )
        return block.endswith(b"\n")

    def _ended(self) -> ChildEnded:
        try:
            code = self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
            return ChildEnded(1, "it closed its output")
        self._listener.join(_END_S)
        lines = self._said.decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return ChildEnded(code, plain_line(last)[:_MOST_SAID])

    def _listen(self, stderr: IO[bytes]) -> None:
        """Take what it says beside its replies, so that no pipe fills up, and keep the end of it."""
        with stderr:
            while block := stderr.read(_BLOCK_BYTES):
                self._said += block
                del self._said[:-_LAST_WORDS_BYTES]
