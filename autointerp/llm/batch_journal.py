"""Which batches were sent to a provider, and with which requests: what the next process must know if this one dies.

A batch is entered as *planned* before the provider hears of it and as *created* as soon as its id is known, so at any moment
of a crash either its id is on disk, or its token is, by which it is found among the provider's batches.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from sae_core.errors import StoreError

BatchState = Literal["planned", "created", "lost"]


class BatchRecord(BaseModel):
    """One batch."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    token: str
    """Our name for it, which the provider keeps as metadata."""
    batch_id: str = ""
    """The provider's name for it, empty as long as it is only planned."""
    state: BatchState
    """``planned``: perhaps created; ``created``: its id is known; ``lost``: never created, or forgotten by the provider."""
    custom_ids: tuple[str, ...] = ()
    """Requests in it."""
    planned_at: float = 0.0
    """When it was planned, seconds since 1970 (UTC)."""


class BatchJournal(Protocol):
    """A memory of batches that outlives the process."""

    @property
    def scope(self) -> str:
        """What tells this journal's batches from all others at the provider."""
        ...

    def save(self, record: BatchRecord) -> None:
        """Keep a record; it is on disk when this returns. A later one of the same token takes its place."""
        ...

    def load(self) -> list[BatchRecord]:
        """All batches in the order in which they were planned."""
        ...

    def length(self) -> int:
        """Grows whenever something is kept, by whichever process."""
        ...


class MemoryJournal:
    """A journal for where nothing needs to outlive the process."""

    def __init__(self) -> None:
        self.scope = uuid.uuid4().hex
        self._records: dict[str, BatchRecord] = {}

    def save(self, record: BatchRecord) -> None:
        """Keep a record."""
        self._records[record.token] = record

    def load(self) -> list[BatchRecord]:
        """All batches in the order in which they were planned."""
        return list(self._records.values())

    def length(self) -> int:
        """Of one process only, which knows what it kept."""
        return 0


class FileJournal:
    """A journal as a file of JSON lines to which only is appended, so that several processes can share it.

    A line that a crash cut short is passed over: each is written with a line break before it and one after it.
    """

    def __init__(self, path: Path) -> None:
        """Errors: StoreError where the folder cannot be written to."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._scopes():
                self._append({"scope": uuid.uuid4().hex})
        except OSError as error:
            raise StoreError(
                f"the journal of batches {str(path)!r} cannot be written ({error.strerror}): make its folder writable"
            ) from error
        # where two processes began it at once, both take the first line
        self.scope = self._scopes()[0]

    def save(self, record: BatchRecord) -> None:
        """Keep a record; the requests, which are many, are written when the batch is planned and not again."""
        data = record.model_dump(mode="json")
        if record.state != "planned":
            del data["custom_ids"]
        try:
            self._append({"batch": data})
        except OSError as error:
            raise StoreError(
                f"the journal of batches {str(self.path)!r} cannot be written ({error.strerror}): make room on that disk"
            ) from error

    def load(self) -> list[BatchRecord]:
        """All batches in the order in which they were planned."""
        found: dict[str, BatchRecord] = {}
        for line in self._lines():
            try:
                record = BatchRecord.model_validate_json(json.dumps(line.get("batch")))
            except ValidationError:
                continue  # the line of the scope
            before = found.get(record.token)
            if before is not None and not record.custom_ids:
                record = record.model_copy(update={"custom_ids": before.custom_ids})
            found[record.token] = record
        return list(found.values())

    def length(self) -> int:
        """Of the file, in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def _scopes(self) -> list[str]:
        return [line["scope"] for line in self._lines() if isinstance(line.get("scope"), str)]

    def _lines(self) -> list[dict[str, Any]]:
        """The objects of all whole lines."""
        if not self.path.exists():
            return []
        lines: list[dict[str, Any]] = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                value = json.loads(text)
            except ValueError:
                continue
            if isinstance(value, dict):
                lines.append(value)
        return lines

    def _append(self, value: dict[str, Any]) -> None:
        """One line, in one write, on disk when this returns."""
        data = f"\n{json.dumps(value)}\n".encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            written = os.write(descriptor, data)
            if written != len(data):
                raise OSError(28, os.strerror(28))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
