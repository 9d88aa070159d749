"""JSON lines, plain or compressed with gzip or zstd: a line is a document."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import pyarrow as pa

from sae_core.document import Document
from sae_core.errors import CorpusError
from sae_core.readers.field import Field, FieldKind
from sae_core.readers.file import CorpusFile

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
KINDS: tuple[FieldKind, ...] = ("text", "tokens", "messages")
_BUFFER_BYTES = 1 << 18


def read(file: CorpusFile, field: Field) -> Iterator[Document]:
    """The documents of the lines. Raises CorpusError for a line that is none, or a stream that breaks off."""
    with file.reading(_kind(file)), _lines(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _document(line, file, number, field)


def _document(line: bytes, file: CorpusFile, number: int, field: Field) -> Document:
    place = f"{file.place}, line {number}"
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{place} is not UTF-8 ({error.reason}): write the file as UTF-8.") from error
    except (json.JSONDecodeError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise CorpusError(f"{place} is not JSON ({why}): a .jsonl corpus has one JSON object a line.") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise CorpusError(f"{place} cannot be read ({error}): leave the line out.") from error
    if not isinstance(row, dict):
        raise CorpusError(f"{place} is {type(row).__name__}: a .jsonl corpus has one JSON object a line.")
    if row.get(field.name) is None:
        raise field.missing(place, row)
    return field.document(row[field.name], f"{file.name}:{number}", place)


def _kind(file: CorpusFile) -> str:
    return {".gz": "gzip", ".zst": "zstd"}.get(file.name[file.name.rfind(".") :], "JSON lines")


@contextmanager
def _lines(file: CorpusFile) -> Iterator[BinaryIO]:
    with file.open() as stream:
        if not file.name.endswith((".gz", ".zst")):
            yield stream
            return
        if not file.size:
            raise CorpusError(f"{file.place} is empty, not a {_kind(file)} file: fetch or write it again.")
        if file.name.endswith(".gz"):
            with gzip.open(stream) as plain:
                yield cast(BinaryIO, plain)
        else:
            with io.BufferedReader(_Zstd(stream), _BUFFER_BYTES) as plain:
                yield cast(BinaryIO, plain)


class _Zstd(io.RawIOBase):
    """pyarrow's decompressed stream as one that Python can read lines of."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream: Any = pa.CompressedInputStream(stream, "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return int(self._stream.readinto(buffer))

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
