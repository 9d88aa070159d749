"""Rows a second that the store writes, on SQLite and on PostgreSQL: score rows, a transaction a chunk.

python -m benchmarks.store_writes

Three ways, in turns: ORM objects one by one (``Session.add_all``), ``autointerp.store.bulk.insert_rows``, and as the floor the
bare driver (psycopg's COPY, sqlite3's executemany) with values that are ready. PostgreSQL is one that the tests start, without
fsync, unless ``--postgres`` names a database (which must be empty).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy.orm import Session

from autointerp.score import Score
from autointerp.store import LabelStore, open_store
from autointerp.store.bulk import insert_rows
from autointerp.store.column_types import utc_now
from autointerp.store.models import Run, ScoreRow
from autointerp.store.rows import score_row

COLUMNS = (
    "run_id",
    "source",
    "latent",
    "scorer",
    "explainer",
    "values",
    "failure_kind",
    "failure_message",
    "created_at",
)
VALUES = {"f1": 0.8125, "precision": 0.75, "recall": 0.9, "n": 40, "p_value": 0.0125, "lower": 0.61, "upper": 0.93}


def score_rows(start: int, count: int) -> list[ScoreRow]:
    return [
        score_row("r", "s", Score(latent=latent, scorer="fuzz", explainer="e", values=VALUES))
        for latent in range(start, start + count)
    ]


def ready_values(start: int, count: int) -> list[tuple[Any, ...]]:
    values, now = json.dumps(VALUES, sort_keys=True, separators=(",", ":")), utc_now().isoformat()
    return [("r", "s", latent, "fuzz", "e", values, None, None, now) for latent in range(start, start + count)]


def by_orm(connection: Connection, rows: list[ScoreRow]) -> None:
    with Session(bind=connection) as session:
        session.add_all(rows)
        session.flush()


def bare(connection: Connection, rows: list[tuple[Any, ...]]) -> None:
    driver: Any = connection.connection.dbapi_connection
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    if connection.dialect.name == "postgresql":
        with driver.cursor() as cursor, cursor.copy(f"COPY score ({names}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
    else:
        driver.executemany(f"INSERT INTO score ({names}) VALUES ({', '.join('?' * len(COLUMNS))})", rows)


Way = tuple[Callable[[int, int], list[Any]], Callable[[Connection, list[Any]], None]]
WAYS: dict[str, Way] = {
    "ORM, add_all": (score_rows, by_orm),
    "insert_rows": (score_rows, insert_rows),
    "bare driver": (ready_values, bare),
}
"""What makes the rows, which is not timed, and what writes them."""


def measure(store: LabelStore, rows: int, chunk: int, repeats: int) -> dict[str, float]:
    """Median rows a second of each way, the ways in turns so that a slow minute meets them all."""
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(repeats):
        for name, (make, write) in WAYS.items():
            chunks = [make(start, min(chunk, rows - start)) for start in range(0, rows, chunk)]
            with store.writing() as connection:
                connection.exec_driver_sql("DELETE FROM score")
            begun = time.perf_counter()
            for written in chunks:
                with store.writing() as connection:
                    write(connection, written)
            rates[name].append(rows / (time.perf_counter() - begun))
            with store.reading() as connection:
                assert connection.execute(select(func.count()).select_from(ScoreRow)).scalar_one() == rows
    return {name: statistics.median(found) for name, found in rates.items()}


@contextmanager
def urls(postgres: str | None) -> Iterator[dict[str, str]]:
    with TemporaryDirectory() as folder:
        sqlite = f"sqlite:///{Path(folder) / 'a.db'}"
        if postgres is not None:
            yield {"SQLite": sqlite, "PostgreSQL": postgres}
            return
        from tests.servers import PostgresServer

        with PostgresServer() as server:
            yield {"SQLite": sqlite, "PostgreSQL": server.new_database()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--chunk", type=int, default=500, help="rows a transaction")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--postgres", help="URL of an empty database")
    given = parser.parse_args()
    print(f"{given.rows} score rows, {given.chunk} a transaction, median of {given.repeats}")
    print(f"{'store':12}{'way':16}{'rows/s':>10}{'of the bare driver':>22}")
    with urls(given.postgres) as stores:
        for kind, url in stores.items():
            store = open_store(url)
            run = Run(id="r", name="n", digest="d", ordinal=1, config={}, folder="/", code_version="0")
            store.create_run(run)
            found = measure(store, given.rows, given.chunk, given.repeats)
            store.close()
            for name, rate in found.items():
                print(f"{kind:12}{name:16}{rate:10,.0f}{rate / found['bare driver']:22.2f}")


if __name__ == "__main__":
    main()
