"""JSON objects as columns, by Arrow's own reader where it knows all their names: half the time of Python objects. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import json as arrow_json
from pydantic_core import from_json

from autointerp.export.checks import columns_of


class ObjectReader:
    """Reads objects of like names, again and again. Names that are new are read by way of Python, and known from then on."""

    def __init__(self, wanted: Mapping[str, pa.DataType]) -> None:
        """``wanted``: the columns that are returned, where some object has them."""
        self._wanted = wanted
        self._known: dict[str, pa.DataType] = {}

    def columns(self, texts: Sequence[str]) -> dict[str, pa.Array]:
        """The wanted columns of some objects, null where one says nothing; ``texts`` [R] without line breaks.

        Errors: InputError where a value does not fit its column.
        """
        if (table := self._read(texts)) is not None:
            columns = {name: table.column(name).chunk(0) for name in self._known if name in self._wanted}
            return {name: column for name, column in columns.items() if column.null_count < len(column)}
        rows: list[dict[str, Any]] = from_json(f"[{','.join(texts)}]", cache_strings="keys")
        fields = self._learn(rows)
        return columns_of(rows, fields) if fields else {}

    def _read(self, texts: Sequence[str]) -> pa.Table | None:
        """None where a name is not known, or a value is none of the type that it had."""
        if not self._known:
            return None
        lines = "\n".join(texts).encode()
        try:
            table = arrow_json.read_json(
                pa.BufferReader(lines),
                read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(lines) + 1),
                parse_options=arrow_json.ParseOptions(
                    explicit_schema=pa.schema(list(self._known.items())), unexpected_field_behavior="error"
                ),
            )
        except pa.ArrowInvalid:
            return None
        return table if len(table) == len(texts) else None

    def _learn(self, rows: Sequence[Mapping[str, Any]]) -> list[pa.Field]:
        """The wanted fields among the objects' names."""
        names: set[str] = set().union(*rows)
        for name in sorted(names):
            if name in self._wanted:
                self._known[name] = self._wanted[name]
            elif pa.types.is_null(self._known.get(name, pa.null())):
                value = next((value for row in rows if (value := row.get(name)) is not None), None)
                number = isinstance(value, int | float) and not isinstance(value, bool)
                self._known[name] = pa.float64() if number else pa.array([value]).type
        return [pa.field(name, self._wanted[name]) for name in sorted(names & self._wanted.keys())]
