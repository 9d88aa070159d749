"""Parquet: a row is a document; only the wanted column is read, page by page."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.parquet as pq

from sae_core.document import Document
from sae_core.readers.field import Field, FieldKind
from sae_core.readers.file import CorpusFile
from sae_core.readers.table import check_column, column_documents

SUFFIXES = (".parquet",)
KINDS: tuple[FieldKind, ...] = ("text", "tokens", "messages")
_BUFFER_BYTES = 1 << 20
"""Read at once of a column's pages, so that a row group of the hub need not come whole before its first row."""
_ROWS = 64


def read(file: CorpusFile, field: Field) -> Iterator[Document]:
    """The documents of the rows; null rows are left out. Raises CorpusError."""
    with (
        file.reading("parquet"),
        file.open() as stream,
        pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False) as table,
    ):
        check_column(table.schema_arrow, field, file.place)
        batches = table.iter_batches(batch_size=_ROWS, columns=[field.name], use_threads=False)
        columns = (batch.column(0) for batch in batches)
        yield from column_documents(columns, field, file.name, file.place)
