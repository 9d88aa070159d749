"""The result files of a batch: lines in any order, some twice, some missing, one for each request that was worked.

They can be gigabytes (log-probabilities), and are wanted one line at a time, so they lie in a nameless temporary file with
an index in memory.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import IO, Any

from autointerp.llm.call_errors import CallError, InvalidReply, Transient
from autointerp.llm.foreign_text import shown
from autointerp.llm.http_failures import http_failure

MOST_LINE_BYTES = 16 * 2**20
"""A longer line is no reply."""
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([^"\\]{1,128})"')
_NOT_WORKED = {"batch_expired", "batch_cancelled"}
"""Codes of lines that stand for requests which the batch never came to."""


class BatchResults:
    """What a batch has answered, by custom id; each answer is given out once."""

    def __init__(
        self, custom_ids: Collection[str], folder: Path | None = None, hide: Callable[[str], str] = lambda text: text
    ) -> None:
        """``folder``: where there is room for the files; the system's temporary one by default. ``hide`` takes a key out of a text."""
        self._hide = hide
        self.unknown = 0
        """Lines about requests that are not of this batch, or about none."""
        self.repeated = 0
        """Lines about requests that had one already."""
        self._wanted = frozenset(custom_ids)
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - until close()
        self._lines: dict[str, tuple[int, int]] = {}
        self._room = 2**20 + len(self._wanted) * MOST_LINE_BYTES

    async def add(self, chunks: AsyncIterator[bytes]) -> None:
        """Take one result file in. The first line about a request holds. Errors: InvalidReply, far too long a file."""
        start = self._file.seek(0, 2)
        async for chunk in chunks:
            self._room -= len(chunk)
            if self._room < 0:
                raise InvalidReply("the batch's result file is larger than its requests can have answers")
            self._file.write(chunk)
        await asyncio.to_thread(self._index, start)

    @property
    def left(self) -> int:
        """Answers that were not given out yet."""
        return len(self._lines)

    def take(self, custom_id: str) -> str | CallError | None:
        """The reply's body as JSON text, or why there is none; None where the batch says nothing about the request."""
        place = self._lines.pop(custom_id, None)
        if place is None:
            return None
        at, length = place
        if length > MOST_LINE_BYTES:
            return InvalidReply(f"the reply is larger than {MOST_LINE_BYTES // 2**20} MiB")
        self._file.seek(at)
        try:
            return _reply_of(json.loads(self._hide(self._file.read(length).decode("utf-8", "replace"))))
        except (ValueError, RecursionError):
            return InvalidReply("the batch's line about this request is no JSON")

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def _index(self, start: int) -> None:
        """Enter the lines from there on."""
        self._file.seek(start)
        at = start
        while line := self._file.readline():
            if line.strip():
                self._enter(line, at)
            at += len(line)

    def _enter(self, line: bytes, at: int) -> None:
        # what a model wrote stands in the line as a JSON string, in which quotation marks have a backslash before them
        match = _CUSTOM_ID.search(line)
        custom_id = match[1].decode("utf-8", "replace") if match else ""
        if custom_id not in self._wanted:
            self.unknown += 1
        elif custom_id in self._lines:
            self.repeated += 1
        else:
            self._lines[custom_id] = (at, len(line))


def _reply_of(line: Any) -> str | CallError:
    """One line of a result file: ``{"custom_id", "response": {"status_code", "body"} | null, "error": {...} | null}``."""
    if not isinstance(line, dict):
        return InvalidReply("the batch's line about this request is no JSON object")
    response, error = line.get("response"), line.get("error")
    response = response if isinstance(response, dict) else {}
    status, body = response.get("status_code"), response.get("body")
    if status == 200 and not error:
        return json.dumps(body)
    code = error.get("code") if isinstance(error, dict) else None
    if code in _NOT_WORKED:
        return Transient(f"the batch ended before it came to this request ({code})")
    said = json.dumps({"error": error} if error else body)
    if not isinstance(status, int) or 200 <= status < 300:
        return Transient(f"the batch failed at this request: {shown(said)}")
    return http_failure(status, {}, said, key_name="the batch's key")
