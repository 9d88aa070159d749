"""The store keeps what it is given, refuses what is no number, and holds one terminal row a key."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import inspect
from sqlalchemy.exc import IntegrityError

from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.score import Score
from autointerp.store import LabelStore, open_store
from autointerp.store.column_types import SafeText
from autointerp.store.dialects import journal_mode, parse_url
from autointerp.store.models import Base, LabelRow, Run, Timing
from autointerp.store.opening import HEAD, MIGRATIONS, sqlite_url
from autointerp.store.rows import explanation_row, score_row
from sae_core.errors import DiskFullError, NonFiniteError, StoreError
from sae_core.records import Source


def new_run(run_id: str = "abc-1", ordinal: int = 1) -> Run:
    return Run(
        id=run_id,
        name="n",
        digest="d",
        ordinal=ordinal,
        config={"a": [1]},
        state="running",
        folder="/x",
        code_version="0",
    )


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    opened = open_store(sqlite_url(tmp_path / "a.db"))
    opened.create_run(new_run())
    return opened


def add(store: LabelStore, *rows: Base) -> None:
    store._add(rows)


def test_the_migrations_make_the_tables_of_the_models(store: LabelStore) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    with store.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        tables = set(inspect(connection).get_table_names())
    assert {"run", "source", "chunk", "explanation", "score", "label", "control_row", "artefact", "timing"} <= tables
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == HEAD


def test_a_store_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path, store: LabelStore) -> None:
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"newer autointerp \(revision '9999'.*upgrade autointerp"):
        open_store(sqlite_url(tmp_path / "a.db"))


def test_a_store_that_is_none_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, however long it may be " * 200)
    with pytest.raises(StoreError, match="not a database"):
        open_store(sqlite_url(tmp_path / "text.db"))
    with pytest.raises(StoreError, match="there is no store"):
        open_store(sqlite_url(tmp_path / "absent.db"), create=False)
    assert not (tmp_path / "absent.db").exists()
    with pytest.raises(StoreError, match="does not exist"):
        open_store(sqlite_url(tmp_path / "no" / "a.db"))
    for url in ("nonsense", "mysql://host/x", "oracle+what://x", "sqlite://", "sqlite:///:memory:"):
        with pytest.raises(StoreError, match=r"store\.url"):
            parse_url(url)


def test_the_journal_is_safe_for_this_sqlite(store: LabelStore) -> None:
    with store.reading() as connection:
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
        busy = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
        foreign = connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one()
    assert mode == ("wal" if sqlite3.sqlite_version_info >= (3, 51, 3) else "delete") == journal_mode().lower()
    assert (busy, foreign) == (20_000, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(store: LabelStore, value: float) -> None:
    with pytest.raises((NonFiniteError, Exception), match=r"nan|inf|NaN") as caught:
        add(store, Timing(run_id="abc-1", name="x", seconds=value))
    assert isinstance(caught.value, NonFiniteError) or isinstance(caught.value.__cause__, NonFiniteError)
    with pytest.raises(Exception, match="NaN or infinity") as caught:
        add(
            store,
            score_row(
                "abc-1",
                "s",
                Score.model_construct(latent=0, scorer="x", explainer=None, values={"f1": value}, failure=None),
            ),
        )
    assert store.timings("abc-1") == {}
    assert store.scores("abc-1", "s") == []


def test_the_database_itself_refuses_infinity_and_nan(tmp_path: Path, store: LabelStore) -> None:
    connection = sqlite3.connect(tmp_path / "a.db")
    for value in (math.inf, -math.inf, math.nan):  # NaN arrives as NULL, which NOT NULL refuses
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(
                "INSERT INTO timing (run_id, name, seconds, created_at) VALUES ('abc-1', 'x', ?, '')", (value,)
            )
    connection.close()


@given(text=st.text(min_size=1), payload=st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, text: str, payload: dict[str, object]) -> None:
    store = any_text_store(tmp_path_factory)
    explanation = Explanation(latent=3, explainer="e", text=text, payload=payload, exemplar_ids=("1:32",))
    with store.writing() as connection:
        connection.exec_driver_sql("DELETE FROM explanation")
    add(store, explanation_row("abc-1", "s", explanation))
    (back,) = store.explanations("abc-1", "s")
    expected = text.replace("\x00", "␀")
    assert back == explanation.model_copy(update={"text": expected})


_STORES: dict[int, LabelStore] = {}


def any_text_store(factory: pytest.TempPathFactory) -> LabelStore:
    if 0 not in _STORES:
        _STORES[0] = open_store(sqlite_url(factory.mktemp("text") / "a.db"))
        _STORES[0].create_run(new_run())
    return _STORES[0]


def test_lone_surrogates_become_a_visible_mark(store: LabelStore) -> None:
    shown = SafeText().process_bind_param("a\ud800b\x00", store.engine.dialect)
    assert shown is not None
    assert shown.encode("utf-8").decode().replace("�", "") == "ab␀"


def test_one_terminal_row_a_key(store: LabelStore) -> None:
    failure = Failure(kind=FailureKind.TOO_FEW_WINDOWS, message="3 windows, 8 are needed")
    rows = [
        lambda: explanation_row("abc-1", "s", Explanation(latent=1, explainer="e", text="t")),
        lambda: score_row(
            "abc-1", "s", Score(latent=1, scorer="p", explainer="e", values={"f1": 0.5, "n": 3, "m": None})
        ),
        lambda: LabelRow(run_id="abc-1", source="s", latent=1, status="labelled", text="t", decided_by="x"),
    ]
    for row in rows:
        add(store, row())
        with pytest.raises(IntegrityError):
            add(store, row())
    add(store, explanation_row("abc-1", "s", Explanation(latent=2, explainer="e", failure=failure)))
    assert [e.failure for e in store.explanations("abc-1", "s")] == [None, failure]
    assert store.scores("abc-1", "s", [1])[0].values == {"f1": 0.5, "n": 3, "m": None}
    assert store.explanations("abc-1", "s", [2])[0].latent == 2
    assert store.explanations("abc-1", "other") == []


@pytest.mark.parametrize(("status", "text"), [("labelled", None), ("dead", "a text"), ("unknown", None)])
def test_a_label_has_a_text_exactly_where_it_is_labelled(store: LabelStore, status: str, text: str | None) -> None:
    with pytest.raises(IntegrityError):
        add(store, LabelRow(run_id="abc-1", source="s", latent=0, status=status, text=text, decided_by="x"))


def test_runs_are_found_by_a_unique_beginning(store: LabelStore) -> None:
    store.create_run(new_run("abd-2", 2))
    assert store.next_ordinal("d") == 3
    assert store.next_ordinal("other") == 1
    assert store.run("abd").id == "abd-2"
    assert store.run("abc-1").config == {"a": [1]}
    with pytest.raises(StoreError, match="beginning of 2 runs"):
        store.run("ab")
    with pytest.raises(StoreError, match="no run 'x'; it has abc-1, abd-2"):
        store.run("x")
    with pytest.raises(StoreError, match="has a run"):
        store.create_run(new_run())


def test_sources_are_registered_once_and_may_not_change(store: LabelStore) -> None:
    source = Source("s", "m", "r", "layers.0", "c", "f" * 64, 8)
    store.add_sources("abc-1", [source])
    store.add_sources("abc-1", [source])
    assert store.sources("abc-1") == [source]
    with pytest.raises(StoreError, match="has changed since the run began"):
        store.add_sources("abc-1", [Source("s", "m", "r", "layers.0", "c", "e" * 64, 8)])


def test_no_password_is_shown(tmp_path: Path) -> None:
    shown = parse_url("postgresql://me:secret@host/db").render_as_string()
    assert "secret" not in shown
    assert shown.startswith("postgresql+psycopg://me")


def test_a_full_disk_under_the_store_is_a_sentence(store: LabelStore) -> None:
    with store.reading() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    with store.engine.connect() as connection:  # the pool gives this connection to the next writer as well
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFullError, match="free some space"):
        add(store, *(Timing(run_id="abc-1", name="x" * 80, seconds=1.0) for _ in range(500)))
    assert store.timings("abc-1") == {}


def test_a_store_that_is_held_is_a_sentence(tmp_path: Path, store: LabelStore) -> None:
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="held by another process"):
        store.add_timing("abc-1", "x", 1.0)
    other.execute("ROLLBACK")
    other.close()
    store.add_timing("abc-1", "x", 1.0)


def test_the_tables_are_valid_for_postgresql_too() -> None:
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    for table in Base.metadata.sorted_tables:
        text = str(CreateTable(table).compile(dialect=postgresql.dialect()))
        assert "CHECK" in text or table.name in (
            "source",
            "score",
            "choice",
            "verdict",
            "control_row",
            "artefact",
            "llm_budget",
            "llm_reservation",
            "screen",
            "estimate",
            "event_count",
        )
        assert max(map(len, (c.name or "" for c in table.constraints))) <= 63, "PostgreSQL cuts longer names"  # type: ignore[type-var]
