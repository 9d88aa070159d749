"""The test server's own account of every call, to be held against what a client says it sent and paid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any


@dataclass(frozen=True, slots=True)
class Call:
    """One request as the server received it."""

    ordinal: int
    """Place in the order of arrival, from 0."""
    time: float
    """When it arrived, seconds since the epoch."""
    path: str
    """Path of the request."""
    authorization: str | None
    """First 16 hex digits of the sha256 of the Authorization header, never the header; None where there was none."""
    request: Any
    """The request's JSON; None where it had none or it was broken."""
    outcome: str
    """``ok``, the fault's name, ``busy`` (too many at once), ``invalid`` (a refusal by the API's own rules) or ``gone``
    (the client left before the answer)."""
    prompt_tokens: int
    """Tokens of the prompt, by the server's rule; 0 where nothing was answered."""
    cached_tokens: int
    """Those of them that a prefix cache would have held."""
    completion_tokens: int
    """Tokens of the answer; 0 where nothing was answered."""
    billed: bool
    """Whether a server would bill it: an answer was made, whether or not it reached the client."""

    @property
    def prompt(self) -> str:
        """All text of the prompt."""
        return prompt_text(self.request)


def prompt_text(request: Any) -> str:
    """All text of a request: the messages' contents with empty lines between them, or the plain prompt."""
    if not isinstance(request, dict):
        return ""
    messages = request.get("messages")
    if isinstance(messages, list):
        return "\n\n".join(str(m.get("content")) for m in messages if isinstance(m, dict))
    prompt = request.get("prompt", "")
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def authorization_hash(header: str | None) -> str | None:
    """What the ledger holds of a key."""
    return None if header is None else hashlib.sha256(header.encode()).hexdigest()[:16]


class Ledger:
    """Calls in memory and, where a path is given, appended to a file of JSON lines before the client gets its reply.

    A line is handed to the operating system at once, so that it outlives a killed server, though not a power cut.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.calls: list[Call] = []
        self._file: IO[str] | None = None
        if path is not None:
            self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115  (open as long as the server runs)

    def add(self, call: Call) -> None:
        """Enter one call."""
        self.calls.append(call)
        if self._file is not None:
            self._file.write(json.dumps(asdict(call)) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_ledger(path: Path | str) -> list[Call]:
    """Calls of a ledger file; a last line that was cut off by a kill is left out."""
    text = Path(path).read_text(encoding="utf-8")
    return [Call(**json.loads(line)) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def totals(calls: Iterable[Call]) -> dict[str, int]:
    """Calls, billed calls and their tokens."""
    calls = list(calls)
    billed = [call for call in calls if call.billed]
    return {
        "calls": len(calls),
        "billed": len(billed),
        "prompt_tokens": sum(call.prompt_tokens for call in billed),
        "cached_tokens": sum(call.cached_tokens for call in billed),
        "completion_tokens": sum(call.completion_tokens for call in billed),
    }
