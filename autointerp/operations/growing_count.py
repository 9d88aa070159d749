"""Sums over tables that only grow, without reading them again: what has settled is counted once, the newest rows each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select
from sqlalchemy.orm import InstrumentedAttribute

UNSETTLED_ROWS = 100_000
"""Newest ids that are read each time: an id is given before its row is committed, so a few of the newest come late."""
_ROWS_A_QUERY = 200_000


@dataclass
class GrowingCount:
    """Sums over a table's rows by some columns.

    Rows that are deleted after they have settled stay counted in this process, as a counter must not fall.
    """

    table: Any
    """ORM class with an ``id`` that the database counts up."""
    by: Sequence[ColumnElement[Any] | InstrumentedAttribute[Any]]
    sums: Sequence[ColumnElement[Any]]
    """Expressions to be summed up, such as ``func.count()`` or ``func.sum(column)``."""
    only: ColumnElement[bool] | None = None
    """Rows that count; None for all."""
    unsettled: int = UNSETTLED_ROWS
    _settled: dict[tuple[str, ...], list[float]] = field(default_factory=dict)
    _settled_id: int = 0

    def totals(self, connection: Connection) -> dict[tuple[str, ...], list[float]]:
        """The sums by the values of the columns, as text."""
        last = int(connection.execute(select(func.max(self.table.id))).scalar() or 0)
        settled = max(self._settled_id, last - self.unsettled)
        self._add(connection, self._settled, self._settled_id, settled)
        self._settled_id = settled
        found = {key: list(values) for key, values in self._settled.items()}
        self._add(connection, found, settled, last)
        return found

    def _add(self, connection: Connection, into: dict[tuple[str, ...], list[float]], above: int, last: int) -> None:
        """Add the rows with ids above ``above`` up to ``last``, some at a time so that no query takes long."""
        for start in range(above, last, _ROWS_A_QUERY):
            query = select(*self.by, *self.sums).where(
                self.table.id > start, self.table.id <= min(start + _ROWS_A_QUERY, last)
            )
            if self.only is not None:
                query = query.where(self.only)
            for row in connection.execute(query.group_by(*self.by)):
                sums = into.setdefault(tuple(map(str, row[: len(self.by)])), [0.0] * len(self.sums))
                for number, value in enumerate(row[len(self.by) :]):
                    sums[number] += float(value or 0)
