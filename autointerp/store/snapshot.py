"""A store as it is at one moment, for whoever reads it by many queries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, func, select, text, type_coerce
from sqlalchemy.types import Text

from autointerp.store.dialects import READ_ONLY, journal_mode
from autointerp.store.failures import own_errors
from autointerp.store.models import (
    EstimateRow,
    ExplanationRow,
    LabelRow,
    LLMCall,
    ReviewRow,
    ScoreRow,
    VerdictRow,
)
from autointerp.store.store import LabelStore

_IDLE_S = 900
"""How long a reader may work between two queries before PostgreSQL ends its transaction."""
_OF_A_DICTIONARY = (LabelRow, ExplanationRow, ScoreRow, EstimateRow, ReviewRow, LLMCall, VerdictRow)


class Snapshot(LabelStore):
    """A store whose reads all see one state; it writes nothing."""

    def __init__(self, engine: Engine, connection: Connection | None) -> None:
        super().__init__(engine)
        self._connection = connection

    @property
    def holds(self) -> bool:
        """Whether the database itself holds the state; otherwise compare :func:`state_of` before and after."""
        return self._connection is not None

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """The transaction that holds the state, or a short one."""
        if self._connection is None:
            with super().reading() as connection:
                yield connection
        else:
            with own_errors():
                yield self._connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Nothing is written in a snapshot."""
        raise AssertionError("a snapshot is only read")
        yield  # pragma: no cover


@contextmanager
def snapshot(store: LabelStore) -> Iterator[Snapshot]:
    """One state of a store while the context lasts. Errors: StoreError.

    PostgreSQL and SQLite's WAL hold it. With SQLite's rollback journal a reader would keep out all writers, the run's own
    heartbeat among them, so each query is a transaction of its own there.
    """
    sqlite = store.engine.dialect.name == "sqlite"
    if sqlite and journal_mode() != "WAL":
        yield Snapshot(store.engine, None)
        return
    options: dict[str, object] = {READ_ONLY: True}
    if not sqlite:
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with own_errors(), store.engine.connect().execution_options(**options) as connection, connection.begin():
        if not sqlite:
            connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{_IDLE_S}s'"))
        yield Snapshot(store.engine, connection)


def state_of(store: LabelStore, run_id: str) -> str:
    """sha256 that differs once a row of a run's labels, scores, reviews, verdicts or calls came or went."""
    found: list[object] = []
    with store.reading() as connection:
        for table in _OF_A_DICTIONARY:
            count, last = connection.execute(
                select(func.count(), func.max(table.id)).where(table.run_id == run_id)
            ).one()
            # SQLite may give a number that was deleted again, hence the time of the last one
            made = connection.execute(select(type_coerce(table.created_at, Text)).where(table.id == last)).scalar()
            found.append([table.__tablename__, count, last, made])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
