"""Documents of a column of an Arrow table, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from sae_core.document import Document
from sae_core.errors import CorpusError
from sae_core.readers.field import HOLDS, Field

ROWS = 256
"""Rows that are made Python values at once."""


def check_column(schema: pa.Schema, field: Field, place: str) -> None:
    """Raise CorpusError unless the table has exactly one such column, and of a type that can hold the field."""
    indices = schema.get_all_field_indices(field.name)
    if not indices:
        raise field.missing(place, schema.names)
    kind = schema.field(indices[0]).type
    if len(indices) > 1 or not _fits(kind, field):
        held = "several columns" if len(indices) > 1 else str(kind).split("\n")[0][:80]
        raise CorpusError(
            f"{place}: the column {field.name!r} holds {held}, not {HOLDS[field.kind]}: set {field.setting} to a column that does."
        )


def column_documents(columns: Iterable[Any], field: Field, name: str, place: str) -> Iterator[Document]:
    """The documents of a column that comes in pieces; null rows are left out. Raises CorpusError."""
    row = 0
    for column in columns:
        for start in range(0, len(column), ROWS):
            piece = column.slice(start, ROWS)
            if field.kind == "tokens":
                for value in piece:
                    row += 1
                    if value.is_valid:
                        yield _ids(value, f"{name}:{row}", f"{place}, row {row}", field)
                continue
            try:
                values = piece.to_pylist()
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{place}, one of the rows {row + 1} to {row + len(piece)} is not UTF-8: write the file as UTF-8."
                ) from error
            for value in values:
                row += 1
                if value is not None:
                    yield field.document(value, f"{name}:{row}", f"{place}, row {row}")


def _ids(value: Any, name: str, place: str, field: Field) -> Document:
    numbers = value.values
    if numbers.null_count:
        raise CorpusError(f"{place}: {field.name!r} has a null among its token ids: leave the row out.")
    return Document(name, ids=np.asarray(numbers.to_numpy(zero_copy_only=False)).astype(np.int64))


def _fits(kind: Any, field: Field) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if field.kind == "text":
        return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return False
    return bool(types.is_integer(kind.value_type) if field.kind == "tokens" else types.is_struct(kind.value_type))
