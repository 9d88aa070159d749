"""The files of an export while it is made: hashed as they are written, and flushed to disk."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, Field

GZIP_LEVEL = 5


class WrittenFile(BaseModel):
    """One file of an export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Relative to the export's folder, with slashes."""
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class HashedFile:
    """A file that is written from its beginning to its end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.size = 0
        """Bytes so far."""

    def write(self, data: bytes) -> int:
        """Append."""
        self._digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Hand on what is buffered; gzip asks for it."""
        self._file.flush()

    @property
    def sha256(self) -> str:
        """Of all that was written."""
        return self._digest.hexdigest()


class OutputFiles:
    """Makes files below a folder and remembers them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: list[WrittenFile] = []

    @contextmanager
    def binary(self, name: str) -> Iterator[HashedFile]:
        """A file to be written; it counts only when the block ends without an error. Errors: OSError."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            hashed = HashedFile(file)
            yield hashed
            file.flush()
            os.fsync(file.fileno())
        self.written.append(WrittenFile(name=name, bytes=hashed.size, sha256=hashed.sha256))

    @contextmanager
    def gzipped(self, name: str) -> Iterator[gzip.GzipFile]:
        """The same, compressed, without a time in it: equal content is an equal file."""
        with (
            self.binary(name) as file,
            gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as packed,
        ):
            yield packed

    def drop(self) -> None:
        """Remove what was written here."""
        for file in self.written:
            (self.folder / file.name).unlink(missing_ok=True)
        self.written.clear()
