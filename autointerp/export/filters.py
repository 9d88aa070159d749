"""Which rows and columns of the dictionary are wanted: by source, status, and bounds of figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from autointerp.failure import LatentStatus
from sae_core.errors import InputError, UnknownNameError, did_you_mean

_BOUND = re.compile(r"\s*([^\s<>=!]+)\s*(>=|<=|==|!=|=|<|>)\s*(\S+)\s*")
_COMPARE: dict[str, Any] = {
    ">=": pc.greater_equal,
    "<=": pc.less_equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    ">": pc.greater,
}


@dataclass(frozen=True, slots=True)
class Bound:
    """``column op number``; a null never fits, whatever the operator."""

    column: str
    """A column of numbers."""
    op: str
    """>=, <=, ==, !=, < or >."""
    number: float
    """What it is compared with."""

    @classmethod
    def parse(cls, text: str) -> Bound:
        """Of ``"precision_low>=0.7"``. Errors: InputError."""
        found = _BOUND.fullmatch(text)
        advice = "give a column, one of >= <= == != < >, and a number, e.g. 'precision_low>=0.7'"
        if found is None:
            raise InputError(f"{text!r} is no bound: {advice}.")
        column, op, number = found.groups()
        try:
            value = float(number)
        except ValueError as error:
            raise InputError(f"{text!r} compares with {number!r}, which is no number: {advice}.") from error
        if value != value or value in (float("inf"), float("-inf")):
            raise InputError(f"{text!r} compares with {number}, which no figure of a dictionary is: {advice}.")
        return cls(column, "==" if op == "=" else op, value)

    def __str__(self) -> str:
        # every digit, so that it is the same bound when it is read again
        whole = self.number.is_integer() and abs(self.number) < 1e15
        return f"{self.column}{self.op}{int(self.number) if whole else repr(self.number)}"


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Empty fields let everything through."""

    sources: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    bounds: tuple[Bound, ...] = ()
    columns: tuple[str, ...] = ()
    """Columns that are wanted; source and latent come with them, since they say what a row is about."""

    @classmethod
    def of(
        cls,
        sources: Sequence[str] = (),
        statuses: Sequence[str] = (),
        bounds: Sequence[str] = (),
        columns: Sequence[str] = (),
    ) -> RowFilter:
        """From what a user typed. Errors: InputError, UnknownNameError."""
        known = [status.value for status in LatentStatus]
        for status in statuses:
            if status not in known:
                raise UnknownNameError(f"no latent has the status {status!r}: {did_you_mean(status, known)}")
        names = tuple(dict.fromkeys(name.strip() for given in columns for name in given.split(",") if name.strip()))
        return cls(tuple(sources), tuple(statuses), tuple(Bound.parse(text) for text in bounds), names)

    @property
    def told(self) -> dict[str, Any] | None:
        """As JSON for the manifest; None where everything is let through."""
        found = {
            "sources": list(self.sources),
            "statuses": list(self.statuses),
            "where": [str(bound) for bound in self.bounds],
            "columns": list(self.columns),
        }
        return {name: value for name, value in found.items() if value} or None

    def check(self, schema: pa.Schema, sources: Sequence[str]) -> None:
        """Errors: UnknownNameError for a column or a source that is not there, InputError for one that holds no numbers."""
        for source in self.sources:
            if source not in sources:
                raise UnknownNameError(f"there is no source {source!r}: {did_you_mean(source, sources)}")
        for name in (*self.columns, *(bound.column for bound in self.bounds)):
            if name not in schema.names:
                raise UnknownNameError(f"the dictionary has no column {name!r}: {did_you_mean(name, schema.names)}")
        for bound in self.bounds:
            kind = schema.field(bound.column).type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                raise InputError(f"the column {bound.column!r} holds {kind} and no numbers: bound one that does.")

    def written(self, schema: pa.Schema) -> pa.Schema:
        """The columns that are wanted, in the schema's order."""
        if not self.columns:
            return schema
        wanted = {"source", "latent", *self.columns}
        return pa.schema([field for field in schema if field.name in wanted], metadata=schema.metadata)

    def read_columns(self, schema: pa.Schema) -> list[str]:
        """The columns that must be read to write the wanted ones."""
        needed = {"source", "status", *(bound.column for bound in self.bounds)}
        written = self.written(schema).names
        return [name for name in schema.names if name in needed or name in written]

    def rows(self, table: pa.Table) -> pa.Table:
        """The rows that are wanted."""
        mask: Any = None
        if self.sources:
            mask = pc.is_in(table.column("source").cast(pa.string()), pa.array(self.sources, pa.string()))
        if self.statuses:
            among = pc.is_in(table.column("status").cast(pa.string()), pa.array(self.statuses, pa.string()))
            mask = among if mask is None else pc.and_(mask, among)
        for bound in self.bounds:
            fits = _COMPARE[bound.op](table.column(bound.column).cast(pa.float64()), pa.scalar(bound.number))
            mask = fits if mask is None else pc.and_kleene(mask, fits)
        return table if mask is None else table.filter(mask)
