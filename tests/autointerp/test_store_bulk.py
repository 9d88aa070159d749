"""What is written in bulk reads back as what the ORM would have written, and all of it or nothing is kept."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from autointerp.store import LabelStore, NewChunk, open_store
from autointerp.store.bulk import insert_rows, insert_values
from autointerp.store.models import Artefact, Base, Chunk, ExplanationRow, LLMCall, ScoreRow, SourceRow, Timing
from sae_core.errors import NonFiniteError
from tests.autointerp.scripted_server import add_run
from tests.servers import PostgresServer

WORDS = st.text(max_size=20) | st.text(
    alphabet="\\\t\n\r\x00\x0b\ud800\udfff\\.N\u2028\x7f,\"'{}\U0001f600", max_size=20
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | FINITE | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
OBJECT = st.dictionaries(WORDS, JSON, max_size=3)
BIG = st.integers(-(2**63), 2**63 - 1)
TABLES: list[type[Base]] = [ScoreRow, ExplanationRow, LLMCall, Chunk, SourceRow]
_STORES: dict[str, LabelStore] = {}


@st.composite
def some_rows(draw: st.DrawFn) -> list[tuple[type[Base], dict[str, Any]]]:
    """Values of rows of several tables, with different columns left to their defaults."""
    rows: list[tuple[type[Base], dict[str, Any]]] = []
    for number in range(draw(st.integers(1, 4))):
        latent = number - 2**31 if draw(st.booleans()) else 2**31 - 1 - number
        failure = {"failure_kind": None, "failure_message": draw(st.none() | WORDS)} if draw(st.booleans()) else {}
        place = {"source": "s", "latent": latent}
        rows.append((ScoreRow, {**place, "scorer": "p", "values": draw(OBJECT), **failure}))
        words = draw(WORDS.filter(bool))
        rows.append(
            (
                ExplanationRow,
                {**place, **failure, "explainer": "e", "side": "input", "text": words, "payload": draw(OBJECT)}
                | {"exemplar_ids": draw(st.lists(WORDS, max_size=3)), "cost_usd": draw(FINITE)}
                | {"input_tokens": 1, "output_tokens": 2},
            )
        )
        call = {"endpoint": "x", "model": words, "purpose": "p", "source": "s", "outcome": "lost"}
        call |= {"input_tokens": draw(BIG), "cached_tokens": 0, "output_tokens": draw(BIG), "seconds": draw(FINITE)}
        call |= {"reply": draw(st.none() | st.binary(max_size=40)), "cost_nano_usd": draw(st.none() | BIG)}
        rows.append((LLMCall, call))
        chunk = {
            "stage": "x",
            "queue": "llm",
            "ordinal": number,
            "spec": draw(OBJECT),
            "error": draw(st.none() | WORDS),
        }
        if draw(st.booleans()):
            chunk |= {"planned_units": draw(BIG), "lease_until": draw(FINITE), "owner": draw(WORDS)}
        rows.append((Chunk, chunk))
        text = {"subject": words, "subject_revision": words, "hookpoint": words, "coder": words}
        rows.append(
            (
                SourceRow,
                {"name": f"s{number}", **text, "coder_fingerprint": "f", "num_latents": 3}
                | {"control": draw(st.booleans())},
            )
        )
    return rows


def written(store: LabelStore, run_id: str) -> list[list[tuple[Any, ...]]]:
    """All that the database has of a run, as the driver gives it, but for what must differ."""
    found = []
    with store.reading() as connection:
        for table in TABLES:
            columns = [c for c in table.__table__.columns if c.name not in ("id", "run_id", "created_at")]
            names = ", ".join(connection.dialect.identifier_preparer.quote(column.name) for column in columns)
            rows = connection.exec_driver_sql(
                f"SELECT {names} FROM {table.__tablename__} WHERE run_id = '{run_id}' ORDER BY id"
            )
            found.append([tuple(row) for row in rows])
    return found


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
@given(rows=some_rows())
def test_what_is_written_in_bulk_is_what_the_orm_writes(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: PostgresServer,
    backend: str,
    rows: list[tuple[type[Base], dict[str, Any]]],
) -> None:
    if backend not in _STORES:
        url = f"sqlite:///{tmp_path_factory.mktemp('bulk') / 'a.db'}"
        _STORES[backend] = open_store(url if backend == "sqlite" else postgres_server.new_database())
        add_run(_STORES[backend], "orm")
        add_run(_STORES[backend], "bulk", 2)
    store = _STORES[backend]
    with store.writing() as connection:
        for table in TABLES:
            connection.execute(delete(table))
        with Session(bind=connection) as session:
            for table, values in rows:
                session.add(table(run_id="orm", **values))
                session.flush()  # in this order
        insert_rows(connection, [table(run_id="bulk", **values) for table, values in rows])
    assert written(store, "bulk") == written(store, "orm")
    with store.reading() as connection:
        times = connection.execute(select(ScoreRow.created_at).order_by(ScoreRow.id)).scalars().all()
    assert abs((times[0] - times[-1]).total_seconds()) < 60, "a default that is computed"


def test_numbers_that_are_given_stay_and_the_others_are_counted(label_store: LabelStore) -> None:
    add_run(label_store, "r-1")
    with label_store.writing() as connection:
        insert_values(connection, Timing, [{"run_id": "r-1", "name": "a", "seconds": 1.0, "id": 100}])
        insert_values(connection, Timing, [{"run_id": "r-1", "name": name, "seconds": 1.0} for name in "bc"])
        insert_rows(connection, [])
    assert label_store.timings("r-1") == {"a": 1.0, "b": 1.0, "c": 1.0}
    with label_store.reading() as connection:
        assert connection.execute(select(Timing.id).where(Timing.name == "a")).scalar_one() == 100


def test_all_or_nothing(label_store: LabelStore) -> None:
    add_run(label_store, "r-1")
    label_store.plan("r-1", "x", [NewChunk("x", "llm", 0, {})])
    lease = label_store.claim(label_store.chunks("r-1")[0].id, "me", 60.0)
    assert lease is not None

    def artefact(kind: str, value: dict[str, Any] | None = None) -> Artefact:
        return Artefact(run_id="r-1", kind=kind, value=value or {})

    for wrong in ([artefact("a"), artefact("b"), artefact("a")], [artefact("a"), Artefact(run_id="r-1", value={})]):
        with pytest.raises(IntegrityError):
            label_store.finish(lease, wrong)
        assert label_store.artefact("r-1", "a") is None
    with pytest.raises((NonFiniteError, Exception)) as caught:
        label_store.finish(lease, [artefact("a"), artefact("b", {"x": float("nan")})])
    assert isinstance(caught.value, NonFiniteError) or isinstance(caught.value.__cause__, NonFiniteError)
    assert label_store.artefact("r-1", "a") is None
    assert [chunk.state for chunk in label_store.chunks("r-1")] == ["running"]
    label_store.finish(lease, [artefact("a")])
    assert label_store.artefact("r-1", "a") == {}
