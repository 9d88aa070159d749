"""The store keeps what it is given, refuses what is no number, and holds one terminal row a key."""

from __future__ import annotations

import math
import multiprocessing
import sqlite3
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.score import Score
from autointerp.store import LabelStore, open_store
from autointerp.store.column_types import SafeText
from autointerp.store.dialects import journal_mode, parse_url
from autointerp.store.models import Base, LabelRow, Run, Timing
from autointerp.store.opening import HEAD, MIGRATIONS, current_revision, sqlite_url
from autointerp.store.rows import explanation_row, score_row
from sae_core.errors import DiskFullError, NonFiniteError, StoreError
from sae_core.records import Source
from tests.servers import PostgresServer


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
def store(label_store: LabelStore) -> LabelStore:
    label_store.create_run(new_run())
    return label_store


@pytest.fixture
def sqlite_store(tmp_path: Path) -> LabelStore:
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


def test_a_store_of_a_newer_version_is_refused_and_left_alone(store_url: str, store: LabelStore) -> None:
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"newer autointerp \(revision '9999'.*upgrade autointerp"):
        open_store(store_url)


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


def test_the_journal_is_safe_for_this_sqlite(sqlite_store: LabelStore) -> None:
    with sqlite_store.reading() as connection:
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


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_the_database_itself_refuses_infinity_and_nan(store: LabelStore, value: float) -> None:
    written = text("INSERT INTO timing (run_id, name, seconds, created_at) VALUES ('abc-1', 'x', :value, '')")
    with pytest.raises(IntegrityError), store.writing() as connection:
        connection.execute(written, {"value": value})  # to SQLite NaN arrives as NULL, which NOT NULL refuses


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
@given(words=st.text(min_size=1), payload=st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_any_text_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: PostgresServer,
    backend: str,
    words: str,
    payload: dict[str, object],
) -> None:
    if backend not in _STORES:
        path = tmp_path_factory.mktemp("text") / "a.db"
        _STORES[backend] = open_store(sqlite_url(path) if backend == "sqlite" else postgres_server.new_database())
        _STORES[backend].create_run(new_run())
    store = _STORES[backend]
    explanation = Explanation(latent=3, explainer="e", text=words, payload=payload, exemplar_ids=("1:32",))
    with store.writing() as connection:
        connection.exec_driver_sql("DELETE FROM explanation")
    add(store, explanation_row("abc-1", "s", explanation))
    (back,) = store.explanations("abc-1", "s")
    expected = words.replace("\x00", "␀")
    assert back == explanation.model_copy(update={"text": expected})


_STORES: dict[str, LabelStore] = {}


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


def test_a_full_disk_under_the_store_is_a_sentence(sqlite_store: LabelStore) -> None:
    with sqlite_store.reading() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    with sqlite_store.engine.connect() as connection:  # the pool gives this connection to the next writer as well
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFullError, match="free some space"):
        add(sqlite_store, *(Timing(run_id="abc-1", name="x" * 80, seconds=1.0) for _ in range(500)))
    assert sqlite_store.timings("abc-1") == {}


def test_a_store_that_is_held_is_a_sentence(tmp_path: Path, sqlite_store: LabelStore) -> None:
    with sqlite_store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="held by another process"):
        sqlite_store.add_timing("abc-1", "x", 1.0)
    other.execute("ROLLBACK")
    other.close()
    sqlite_store.add_timing("abc-1", "x", 1.0)


def test_no_name_is_longer_than_postgresql_keeps() -> None:
    for table in Base.metadata.sorted_tables:
        names = [table.name, *(c.name for c in table.columns), *(str(c.name or "") for c in table.constraints)]
        names += [str(index.name) for index in table.indexes]
        assert max(map(len, names)) <= 63, table.name


def test_rows_come_in_the_same_order_from_every_database(store: LabelStore) -> None:
    """PostgreSQL sorts by the language of the database where nothing else is said: _a, a, A, b, ä, z or the like."""
    names = ["b", "ä", "A", "_a", "a", "B-", "B", "a b", "z", "ab", "Ä"]
    add(store, *(explanation_row("abc-1", "s", Explanation(latent=1, explainer=name, text="t")) for name in names))
    assert [e.explainer for e in store.explanations("abc-1", "s")] == sorted(names)
    if store.engine.dialect.name == "postgresql":  # a test server may have no other order
        with store.reading() as connection:
            columns = connection.exec_driver_sql(
                "SELECT collation_name FROM information_schema.columns WHERE table_schema = 'public' "
                "AND table_name <> 'alembic_version' AND data_type IN ('text', 'character varying')"
            )
            assert set(columns.scalars()) == {"C"}


@pytest.mark.long
def test_eight_that_make_the_same_store_at_once(store_url: str) -> None:
    """One process migrates, the others wait and find it done."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(8)
    with ProcessPoolExecutor(8, mp_context=context, initializer=_begin_together, initargs=(barrier,)) as pool:
        opened = list(pool.map(_open_and_look, [store_url] * 8, chunksize=1))
    assert opened == [HEAD] * 8


def _begin_together(barrier: Barrier) -> None:
    barrier.wait(120)


def _open_and_look(url: str) -> str | None:
    store = open_store(url)
    with store.reading() as connection:
        return current_revision(connection)
