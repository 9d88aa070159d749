"""Arrow, as a stream (what ``datasets`` writes) or as a file (Feather): a row is a document."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from sae_core.document import Document
from sae_core.errors import CorpusError
from sae_core.readers.field import Field, FieldKind
from sae_core.readers.file import CorpusFile
from sae_core.readers.table import check_column, column_documents

SUFFIXES = (".arrow", ".feather")
KINDS: tuple[FieldKind, ...] = ("text", "tokens", "messages")
_FILE_MAGIC = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read(file: CorpusFile, field: Field) -> Iterator[Document]:
    """The documents of the rows; null rows are left out. Raises CorpusError."""
    with file.reading("Arrow"), file.open() as stream:
        is_file = stream.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        if not is_file and _tail(stream) != _STREAM_END:
            # a stream cut between two batches would be read as a shorter one
            raise CorpusError(
                f"{file.place} is not a whole Arrow file (it has no mark at its end): fetch or write it again."
            )
        stream.seek(0)
        source = pa.memory_map(str(file.path)) if file.path is not None else stream
        with pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source) as table:
            check_column(table.schema, field, file.place)
            columns = (_column(batch, field) for batch in _batches(table, is_file))
            yield from column_documents(columns, field, file.name, file.place)


def _batches(table: Any, is_file: bool) -> Iterator[Any]:
    if is_file:
        yield from (table.get_batch(number) for number in range(table.num_record_batches))
    else:
        yield from table


def _column(batch: Any, field: Field) -> Any:
    column = batch.column(batch.schema.get_field_index(field.name))
    column.validate(full=True)  # a changed offset would be followed out of the file
    return column


def _tail(stream: BinaryIO) -> bytes:
    stream.seek(0, os.SEEK_END)
    if stream.tell() < len(_STREAM_END):
        return b""
    stream.seek(-len(_STREAM_END), os.SEEK_END)
    return stream.read()
