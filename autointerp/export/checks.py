"""What a group of rows must be before it is written: values that fit their columns, nothing missing, nothing infinite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sae_core.errors import InputError, NonFiniteError


def fitting_array(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """Values as a column. Errors: InputError where one does not fit it."""
    _check_whole(values, field)
    try:
        return pa.array(values, field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise InputError(f"a row does not fit the dictionary's columns: {field.name}: {error}") from error


def columns_of(rows: Sequence[Mapping[str, Any]], fields: Sequence[pa.Field]) -> dict[str, pa.Array]:
    """Rows as columns, null where a row has no such key. Errors: InputError where a value does not fit its column."""
    for field in fields:
        if pa.types.is_integer(field.type):
            _check_whole([row.get(field.name) for row in rows], field)
    kinds = pa.struct([pa.field(field.name, field.type) for field in fields])
    try:
        # row by row: a dict is looked up while it is in the processor's cache, which takes a fifth of the time
        table = pa.array(rows, kinds)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return {field.name: fitting_array([row.get(field.name) for row in rows], field) for field in fields}
    return {field.name: table.field(number) for number, field in enumerate(fields)}


def _check_whole(values: Sequence[Any], field: pa.Field) -> None:
    """Of a count with a fraction pyarrow keeps the whole part without a word."""
    if pa.types.is_integer(field.type):
        for value in values:
            if isinstance(value, float) and not value.is_integer():
                raise InputError(
                    f"a row does not fit the dictionary's columns: {field.name} is a whole number, not {value}"
                )


def check_table(table: pa.Table) -> None:
    """Errors: InputError for a null where none is allowed, NonFiniteError for NaN and infinity."""
    for field in table.schema:
        column = table.column(field.name)
        if not field.nullable and column.null_count:
            where = _row(table, pc.is_null(column))
            raise InputError(f"{where} has no {field.name!r}; every row of the dictionary needs one.")
        if pa.types.is_floating(field.type) and column.null_count < len(column):
            finite = pc.is_finite(column)
            if pc.all(finite).as_py() is False:
                where = _row(table, pc.invert(finite))
                value = column.filter(pc.fill_null(pc.invert(finite), False))[0].as_py()
                raise NonFiniteError(f"{where} has {field.name} = {value}; leave out a figure that is not defined.")


def _row(table: pa.Table, wrong: pa.ChunkedArray) -> str:
    """The first row that is wrong, in words."""
    first = table.select([name for name in ("latent", "source") if name in table.column_names]).filter(wrong)
    row = first.slice(0, 1).to_pylist()[0]
    return f"the row of latent {row.get('latent')!r} of {row.get('source')!r}"
