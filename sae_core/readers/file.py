"""A file of a corpus, here or on the hub, and what is said where it is damaged."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from sae_core.errors import CorpusError


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file to read documents from."""

    name: str
    """Relative to the corpus, parts by ``/``."""
    place: str
    """What messages call it."""
    size: int
    """Bytes."""
    version: str
    """With name and size, tells whether the content is still the same: nanoseconds of its last change, or a commit."""
    open: Callable[[], BinaryIO] = field(compare=False)
    """Opens it to be read from its beginning, with ``seek``."""
    path: Path | None = None
    """Where it lies; None on the hub."""
    lone: bool = False
    """Whether it is the whole corpus, not one of a folder."""

    @staticmethod
    def local(path: Path, name: str, *, lone: bool = False) -> CorpusFile:
        """A file of this machine. Raises OSError where it is gone."""
        state = path.stat()
        return CorpusFile(
            name,
            str(path),
            state.st_size,
            str(state.st_mtime_ns),
            lambda: cast(BinaryIO, path.open("rb")),
            path,
            lone,
        )

    @contextmanager
    def reading(self, kind: str) -> Iterator[None]:
        """Raise CorpusError for whatever the libraries say of a damaged file; ``kind`` is what it should be."""
        try:
            yield
        except CorpusError:
            raise
        except UnicodeDecodeError as error:
            raise CorpusError(f"{self.place} is not UTF-8 ({error.reason}): write the file as UTF-8.") from error
        except PermissionError as error:
            raise CorpusError(f"{self.place} may not be read: change its permissions, or leave it out.") from error
        except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise CorpusError(
                f"{self.place} is not a whole {kind} file ({lines[0].rstrip('.')[:200]}): fetch or write it again."
            ) from error
