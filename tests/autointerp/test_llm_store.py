"""Calls, budget and migration in the store: the contract, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError

from autointerp.llm import call_book
from autointerp.llm.call_book import CallBook, _Close, _Open, _Refused
from autointerp.store import LabelStore, open_store
from autointerp.store.calls import (
    NOTHING,
    Amount,
    CallRecord,
    Cap,
    StoredReply,
    account,
    drop_replies,
    enter,
    find_replies,
    open_account,
    reserve,
    settle_abandoned,
)
from autointerp.store.column_types import utc_now
from autointerp.store.dialects import make_engine, parse_url
from autointerp.store.models import ChoiceRow, LLMCall, LLMReservation, ReviewRow, VerdictRow
from autointerp.store.opening import HEAD, MIGRATIONS, current_revision, sqlite_url
from sae_core.errors import BudgetError
from tests.autointerp.scripted_server import add_run, books_balance, outcomes


@pytest.fixture
def store(label_store: LabelStore) -> LabelStore:
    add_run(label_store, "r-1")
    return label_store


def record(key: str | None = None, tokens: int = 10, body: str | None = "{}", nano_usd: int | None = 5) -> CallRecord:
    return CallRecord(
        key=key,
        endpoint="default",
        model="m",
        purpose="fuzz",
        source="s",
        latent=3,
        input_tokens=tokens - 1,
        cached_tokens=0,
        output_tokens=1,
        cost_nano_usd=nano_usd,
        body=body,
        seconds=0.25,
    )


def opened(store: LabelStore, owner: str = "me") -> None:
    with store.writing() as connection:
        open_account(connection, "r-1", owner)
        open_account(connection, "r-1", owner)


def test_replies_come_back_by_their_keys_whatever_is_in_them(store: LabelStore) -> None:
    opened(store)
    bodies = {f"{n:064x}": text for n, text in enumerate(["{}", "", "ä␀\U0001f600" * 5000, "a\x00b"])}
    bodies |= {f"{n:064x}": "{}" for n in range(100, 1300)}  # more than databases take parameters
    with store.writing() as connection:
        enter(connection, "r-1", [record(key, body=body) for key, body in bodies.items()])
    with store.reading() as connection:
        found = find_replies(connection, [*bodies, "f" * 64])
        size = connection.execute(select(func.length(LLMCall.reply)).where(LLMCall.key == f"{2:064x}")).scalar_one()
    assert found == {key: StoredReply(body, 5) for key, body in bodies.items()}
    assert size < 1000
    assert books_balance(store) == (10 * len(bodies), 0)


def test_one_reply_a_key_and_none_without_one(store: LabelStore) -> None:
    opened(store)
    with store.writing() as connection:
        enter(connection, "r-1", [record("a" * 64), record(None, body=None), record(None, body=None), record(None)])
    for wrong in (record("a" * 64), record("b" * 64, body=None)):
        with pytest.raises(IntegrityError), store.writing() as connection:
            enter(connection, "r-1", [wrong])
    assert outcomes(store) == {"reply": 2, "lost": 2}
    assert books_balance(store) == (40, 0)


def test_a_price_that_is_not_known_is_no_price_of_zero(store: LabelStore) -> None:
    opened(store)
    with store.writing() as connection:
        enter(connection, "r-1", [record("a" * 64, nano_usd=None), record("b" * 64, nano_usd=0)])
    with store.reading() as connection:
        found = find_replies(connection, ["a" * 64, "b" * 64])
    assert [found[key * 64].cost_nano_usd for key in "ab"] == [None, 0]


def test_dropped_replies_leave_the_ledger_and_free_their_keys(store: LabelStore) -> None:
    opened(store)
    with store.writing() as connection:
        enter(connection, "r-1", [record("a" * 64)])
    assert drop_replies(store, "r-1", utc_now() - timedelta(hours=1)) == 0
    assert drop_replies(store, "r-1", utc_now() + timedelta(hours=1)) == 1
    with store.writing() as connection:
        assert find_replies(connection, ["a" * 64]) == {}
        enter(connection, "r-1", [record("a" * 64)])
    assert books_balance(store) == (20, 0)


def test_what_dead_processes_had_reserved_is_entered_as_lost(store: LabelStore) -> None:
    for owner in ("alive", "dead", "dead too"):
        opened(store, owner)
    with store.writing() as connection:
        reserve(connection, "r-1", "alive", Amount(5, 50))
        reserve(connection, "r-1", "dead", Amount(7, 70))
        reserve(connection, "r-1", "dead", Amount(-3, -30))
    assert settle_abandoned(store, "r-1", lambda owner: owner.startswith("dead")) == Amount(4, 40)
    assert books_balance(store) == (4, 5)
    assert outcomes(store) == {"lost": 1}
    with store.reading() as connection:
        assert connection.execute(select(LLMReservation.owner)).scalars().all() == ["alive"]


def test_a_run_that_goes_takes_its_calls_along(store: LabelStore) -> None:
    opened(store)
    with store.writing() as connection:
        enter(connection, "r-1", [record("a" * 64)])
        connection.execute(text("DELETE FROM run"))
        assert connection.execute(select(func.count()).select_from(LLMCall)).scalar_one() == 0
        assert account(connection, "r-1", lock=True).spent == NOTHING


def test_the_other_new_tables_hold_what_they_should(store: LabelStore) -> None:
    place = {"run_id": "r-1", "source": "s", "latent": 3}
    store._add([ChoiceRow(**place, scorer="fuzz", explainer="e", values={"f1": 0.5})])
    store._add([VerdictRow(**place, scorer="fuzz", explainer="e", items={"1:32": [1, 0.75]})])
    for row in (
        lambda: ChoiceRow(**place, scorer="fuzz", explainer="e", values={}),
        lambda: VerdictRow(**place, scorer="fuzz", explainer="e", items={}),
        lambda: ReviewRow(**place, action="edit", text=None, by="me"),
        lambda: ReviewRow(**place, action="accept", text="digits", by="me"),
        lambda: ReviewRow(**place, action="shrug", text=None, by="me"),
    ):
        with pytest.raises(IntegrityError):
            store._add([row()])
    store._add([ReviewRow(**place, action="accept", by="me"), ReviewRow(**place, action="edit", text="t", by="me")])
    store.set_run_state("r-1", "paused")
    assert (store.run("r-1").state, store.run("r-1").finished_at) == ("paused", None)


def test_a_store_of_the_first_version_is_upgraded_with_all_its_rows(store_url: str) -> None:
    from alembic import command
    from alembic.config import Config

    engine = make_engine(parse_url(store_url))
    script = Config()
    script.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        script.attributes["connection"] = connection
        command.upgrade(script, "0001")
        connection.execute(
            text(
                "INSERT INTO run (id, name, digest, ordinal, config, state, folder, code_version, created_at) "
                "VALUES ('r-1', 'n', 'd', 1, '{}', 'running', '/x', '0', '2026-01-01T00:00:00.000000+00:00')"
            )
        )
        connection.execute(
            text("INSERT INTO timing (run_id, name, seconds, created_at) VALUES ('r-1', 'x', 1.5, '2026-01-01')")
        )
    upgraded = open_store(store_url, upgrade=True)
    assert [run.id for run in upgraded.runs()] == ["r-1"]
    assert upgraded.timings("r-1") == {"x": 1.5}, "rows that refer to the run are still there"
    upgraded.set_run_state("r-1", "paused")
    with upgraded.reading() as connection:
        assert current_revision(connection) == HEAD
    with pytest.raises(IntegrityError), upgraded.writing() as connection:
        connection.execute(text("INSERT INTO timing (run_id, name, seconds, created_at) VALUES ('no', 'x', 1.5, '')"))
    with pytest.raises(IntegrityError):
        upgraded.set_run_state("r-1", "confused")
    upgraded.close()
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":  # as the store does it: without foreign keys while tables are made anew
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        script.attributes["connection"] = connection
        command.downgrade(script, "0001")
        assert connection.execute(text("SELECT state FROM run")).scalars().all() == ["running"]
        assert connection.execute(text("SELECT seconds FROM timing")).scalars().all() == [1.5]
    engine.dispose()


def test_two_books_at_once_never_pass_the_cap(store: LabelStore) -> None:
    cap = Cap(1000, None)
    books = [CallBook(store, "r-1", cap, f"owner {n}") for n in range(2)]
    granted = [0, 0]

    def spend(number: int) -> None:
        for _ in range(40):
            results = books[number]._work([_Open(None, Amount(7, 0)) for _ in range(3)])
            granted[number] += sum(result is None for result in results)

    threads = [threading.Thread(target=spend, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(granted) == 1000 // 7
    assert books_balance(store) == (0, 7 * sum(granted))


class BudgetMachine(RuleBasedStateMachine):
    """Processes that open and close calls, die, are buried, and come again with another cap, against a model of plain sums."""

    @initialize(cap=st.integers(50, 300))
    def start(self, cap: int) -> None:
        self.folder = TemporaryDirectory()
        self.store = open_store(sqlite_url(Path(self.folder.name) / "a.db"))
        add_run(self.store, "r-1")
        self.cap = Cap(cap, 10 * cap)
        self.spent = NOTHING
        self.kept: dict[str, str] = {}
        self.dead: dict[str, Amount] = {}
        self.born = 0
        self.books: dict[str, tuple[CallBook, list[tuple[str, Amount]]]] = {}
        self.birth()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()

    def reserved(self) -> Amount:
        total = NOTHING
        for amount in [*self.dead.values(), *(amount for _, held in self.books.values() for _, amount in held)]:
            total = total.plus(amount)
        return total

    @precondition(lambda self: len(self.books) < 3)
    @rule()
    def birth(self) -> None:
        self.born += 1
        self.books[f"p{self.born}"] = (CallBook(self.store, "r-1", self.cap, f"p{self.born}"), [])

    @precondition(lambda self: self.books)
    @rule(data=st.data(), keys=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4, unique=True))
    def open(self, data: st.DataObject, keys: list[str]) -> None:
        book, held = self.books[data.draw(st.sampled_from(sorted(self.books)))]
        wanted = [Amount(data.draw(st.integers(1, 60)), data.draw(st.integers(0, 600))) for _ in keys]
        results = book._work([_Open(key * 64, amount) for key, amount in zip(keys, wanted, strict=True)])
        for key, amount, result in zip(keys, wanted, results, strict=True):
            if key in self.kept:
                assert result == StoredReply(self.kept[key], 0)
                continue
            total = self.spent.plus(self.reserved()).plus(amount)
            if self.cap.holds(total):
                assert result is None
                held.append((key, amount))
            else:
                assert isinstance(result, _Refused)

    @precondition(lambda self: any(held for _, held in self.books.values()))
    @rule(data=st.data(), end=st.sampled_from(["reply", "lost", "unpaid"]))
    def close(self, data: st.DataObject, end: str) -> None:
        book, held = self.books[data.draw(st.sampled_from(sorted(n for n, (_, h) in self.books.items() if h)))]
        key, amount = held.pop(data.draw(st.integers(0, len(held) - 1)))
        paid = {"reply": data.draw(st.integers(1, amount.tokens)), "lost": amount.tokens, "unpaid": 0}[end]
        body = f"reply {self.spent.tokens}" if end == "reply" else None
        row = replace(record(key * 64 if body else None, paid, body, 0))
        (result,) = book._work([_Close(row if paid else None, amount)])
        if body and key in self.kept:
            assert result == StoredReply(self.kept[key], 0)
        else:
            assert result is None
            if body:
                self.kept[key] = body
        self.spent = self.spent.plus(Amount(paid, 0))

    @precondition(lambda self: self.books)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.books)))
        _, held = self.books.pop(name)
        for _, amount in held:
            self.dead[name] = self.dead.get(name, NOTHING).plus(amount)

    @rule()
    def bury(self) -> None:
        before = self.dead
        found = settle_abandoned(self.store, "r-1", lambda owner: owner not in self.books)
        total = NOTHING
        for amount in before.values():
            total = total.plus(amount)
        assert found == total
        self.spent, self.dead = self.spent.plus(total), {}

    @precondition(lambda self: not self.books)
    @rule(more=st.integers(0, 100))
    def raise_the_cap(self, more: int) -> None:
        assert self.cap.tokens is not None
        self.cap = Cap(self.cap.tokens + more, 10 * (self.cap.tokens + more))

    @invariant()
    def the_sums_are_right_and_within_the_cap(self) -> None:
        if not hasattr(self, "store"):
            return
        books_balance(self.store)
        with self.store.reading() as connection:
            standing = account(connection, "r-1", lock=False)
        assert (standing.spent, standing.reserved) == (self.spent, self.reserved())
        assert self.cap.holds(standing.spent.plus(standing.reserved))


TestBudget = BudgetMachine.TestCase
TestBudget.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)


def test_the_upgrade_would_lose_rows_with_foreign_keys_on(tmp_path: Path) -> None:
    """Why foreign keys are off while a table is made anew: a fact of SQLite, looked at here and not taken on trust."""
    connection = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("CREATE TABLE run (id TEXT PRIMARY KEY)")
    connection.execute("CREATE TABLE timing (run_id TEXT REFERENCES run (id) ON DELETE CASCADE)")
    connection.execute("INSERT INTO run VALUES ('r')")
    connection.execute("INSERT INTO timing VALUES ('r')")
    connection.execute("DROP TABLE run")
    assert connection.execute("SELECT count(*) FROM timing").fetchone() == (0,)
    connection.close()


async def _closed_meanwhile(store: LabelStore, after_s: float) -> tuple[list[object], float]:
    """What three calls of one process get (20 tokens each), and after how long, while another's call has reserved 90 of 100 and takes 5."""
    cap = Cap(100, None)
    one, other = CallBook(store, "r-1", cap, "one"), CallBook(store, "r-1", cap, "other")
    assert await one.open(None, Amount(90, 0)) is None
    begun = time.monotonic()

    async def close() -> None:
        await asyncio.sleep(after_s)
        await one.close(record(tokens=5, nano_usd=0), Amount(90, 0))

    calls = asyncio.gather(*(other.open(None, Amount(20, 0)) for _ in range(3)), return_exceptions=True)
    closing = asyncio.create_task(close())
    found = await calls
    took_s = time.monotonic() - begun
    await closing
    await one.shut()
    await other.shut()
    return found, took_s


def test_a_call_waits_for_what_others_have_reserved(store: LabelStore) -> None:
    """Most of it is never spent: a run of many processes would stop at a part of its budget."""
    found, took_s = asyncio.run(_closed_meanwhile(store, 0.7))
    assert found == [None, None, None]
    assert took_s < 5


def test_a_call_does_not_wait_for_ever_for_others(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_book, "_PATIENCE_S", 0.2)
    found, took_s = asyncio.run(_closed_meanwhile(store, 4.0))
    assert [type(error) for error in found] == [BudgetError] * 3
    assert "90 are reserved for calls of other processes" in str(found[0])
    assert took_s < 4


def test_a_call_that_others_leave_no_room_for_is_refused_at_once(store: LabelStore) -> None:
    async def refused() -> float:
        one = CallBook(store, "r-1", Cap(100, None), "one")
        await one.open(None, Amount(90, 0))
        await one.close(record(tokens=90, nano_usd=0), Amount(90, 0))
        begun = time.monotonic()
        with pytest.raises(BudgetError):
            await CallBook(store, "r-1", Cap(100, None), "other").open(None, Amount(20, 0))
        return time.monotonic() - begun

    assert asyncio.run(refused()) < 0.4
