"""What becomes of the store's callers when PostgreSQL goes away: in the middle of a transaction, of a commit, of 64 calls."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import select, text

from autointerp.explanation import Explanation
from autointerp.llm.call_book import CallBook
from autointerp.pipeline.execution import _finish
from autointerp.store import LabelStore, NewChunk, failures, open_store
from autointerp.store.calls import Amount, CallRecord, Cap, settle_abandoned
from autointerp.store.models import LLMCall, Timing
from autointerp.store.opening import after_fork
from autointerp.store.rows import explanation_row
from sae_core.errors import StoreError, StoreUnavailableError
from tests.autointerp.scripted_server import add_run, books_balance
from tests.servers import PostgresServer, free_port
from tests.tcp_proxy import Loss, TcpProxy

END_ALL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()"

COMMIT = b"COMMIT\x00"
"""The whole of a simple query: "ISOLATION LEVEL READ COMMITTED" is none."""


@pytest.fixture
def store(postgres_url: str) -> Iterator[LabelStore]:
    opened = open_store(postgres_url)
    add_run(opened, "r-1")
    yield opened
    opened.close()


@pytest.fixture
def proxy(postgres_server: PostgresServer) -> Iterator[TcpProxy]:
    with TcpProxy(postgres_server.port) as opened:
        yield opened


@pytest.fixture
def proxied(store: LabelStore, postgres_url: str, postgres_server: PostgresServer, proxy: TcpProxy) -> LabelStore:
    """The same store as ``store``, by way of the proxy."""
    return open_store(postgres_url.replace(f":{postgres_server.port}/", f":{proxy.port}/"))


def database(url: str) -> str:
    return url.rsplit("/", 1)[1]


def record(key: str | None, tokens: int = 10, body: str | None = "{}") -> CallRecord:
    return CallRecord(key, "default", "m", "fuzz", "s", 3, tokens, 0, 0, 7 * tokens, body, 0.25)


def test_a_connection_lost_in_a_transaction_is_a_typed_error_and_the_next_one_works(
    store: LabelStore, postgres_server: PostgresServer, postgres_url: str
) -> None:
    def write() -> None:
        with store.writing() as connection:
            connection.execute(text("UPDATE run SET name = 'half'"))
            postgres_server.execute(END_ALL.format(database(postgres_url)))
            connection.execute(text("UPDATE run SET folder = 'half'"))

    with pytest.raises(StoreUnavailableError, match="does not answer"):
        write()
    assert store.run("r-1").name == "n"
    postgres_server.execute(END_ALL.format(database(postgres_url)))
    assert store.run("r-1").folder == "/x", "a connection that was lost while it lay idle is replaced unseen"


def test_whoever_cannot_get_in_is_told_why(postgres_url: str, postgres_server: PostgresServer) -> None:
    wrong = postgres_url.replace(f":{postgres_server.port}/", f":{free_port()}/")
    with pytest.raises(StoreUnavailableError, match=r"does not answer \(.*refused.*start it, or mend store\.url"):
        open_store(wrong)
    with pytest.raises(StoreError, match=r'no such database \(.*"nowhere".*createdb'):
        open_store(postgres_url.replace(database(postgres_url), "nowhere"))
    with pytest.raises(StoreError, match=r'no such user \(.*"nobody".*createuser'):
        open_store(postgres_url.replace("postgres@", "nobody@"))
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        open_store("postgresql+psycopg://me@localhost.invalid/x?hostaddr=127.0.0.1&port=1")
    open_store(postgres_url).close()
    postgres_server.execute(f'ALTER DATABASE "{database(postgres_url)}" SET default_transaction_read_only = on')
    standby = open_store(postgres_url)
    with pytest.raises(StoreUnavailableError, match="a standby, which only reads: give the URL of the primary"):
        add_run(standby, "r-1")
    standby.close()


def test_passwords_with_any_characters_and_the_wrong_one_and_one_connection_too_many() -> None:
    with PostgresServer(
        password="p@s/s:w#o%r?d ", settings={"max_connections": "8", "superuser_reserved_connections": "1"}
    ) as server:
        store = open_store(server.new_database())
        add_run(store, "r-1")
        with pytest.raises(StoreError, match=r"refuses the user or the password.*%40") as caught:
            open_store(server.url.replace("p%40s", "other"))
        assert "other" not in str(caught.value)
        assert not isinstance(caught.value, StoreUnavailableError), "no use in trying again"
        server.execute("CREATE ROLE plain LOGIN PASSWORD 'x'")
        held = [store.engine.connect() for _ in range(7)]
        with pytest.raises(StoreUnavailableError, match="no more connections: raise max_connections"):
            open_store(server.url.replace("postgres:", "plain:").replace("p%40s%2Fs%3Aw%23o%25r%3Fd%20", "x"))
        for connection in held:
            connection.close()
        store.close()


def test_a_lock_that_is_held_and_a_transaction_that_idles_are_ended(store: LabelStore, postgres_url: str) -> None:
    patient = open_store(
        postgres_url + "?options=-c%20lock_timeout%3D200ms%20-c%20idle_in_transaction_session_timeout%3D600ms"
    )
    with patient.reading() as connection:
        shown = connection.execute(text("SHOW statement_timeout")).scalar_one()
        assert shown == "5min", "what the URL does not say stays"
    with store.writing() as connection:
        connection.execute(text("UPDATE run SET name = 'x'"))
        with pytest.raises(StoreUnavailableError, match="held by another process"):
            patient.set_run_state("r-1", "paused")

    def sleep() -> None:
        with patient.writing() as connection:
            connection.execute(text("UPDATE run SET name = 'slept'"))
            time.sleep(1.2)
            connection.execute(text("UPDATE run SET name = 'slept'"))

    with pytest.raises(StoreUnavailableError, match="does not answer"):
        sleep()
    patient.set_run_state("r-1", "paused")
    assert (store.run("r-1").name, store.run("r-1").state) == ("x", "paused")
    patient.close()


@pytest.mark.parametrize(
    ("words", "when"), [(COMMIT, "before"), (COMMIT, "after"), (b"COPY", "before"), (b"COPY", "after")]
)
def test_the_end_of_a_chunk_whose_commit_is_in_doubt_happens_once(
    store: LabelStore, proxied: LabelStore, proxy: TcpProxy, words: bytes, when: Loss
) -> None:
    store.plan("r-1", "explain", [NewChunk("explain", "llm", 0, {})])
    lease = proxied.claim(store.chunks("r-1")[0].id, "me", 60.0)
    assert lease is not None
    rows = [explanation_row("r-1", "s", Explanation(latent=n, explainer="e", text="t")) for n in range(3)]
    proxy.lose(words, when)
    _finish(proxied, lease, rows, [], 1, 1.0)
    assert proxy.lost == 1
    assert [e.latent for e in store.explanations("r-1", "s")] == [0, 1, 2]
    assert [c.state for c in store.chunks("r-1")] == ["done"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("key", ["a" * 64, None], ids=["keyed", "unkeyed"])
def test_a_call_whose_commit_is_in_doubt_is_entered_once(
    store: LabelStore, proxied: LabelStore, proxy: TcpProxy, when: Loss, key: str | None
) -> None:
    async def go() -> None:
        book = CallBook(proxied, "r-1", Cap(1000, None), "me")
        proxy.lose(COMMIT, when)
        assert await book.open(key, Amount(100, 700)) is None
        assert books_balance(store) == (0, 100)
        proxy.lose(COMMIT, when)
        assert await book.close(record(key), Amount(100, 700)) is None, "nobody else was faster"
        assert books_balance(store) == (10, 0)
        await book.shut()

    asyncio.run(go())
    assert proxy.lost == 2
    assert len(calls(store)) == 1


def test_who_was_taken_for_dead_meanwhile_reserves_again_what_is_under_way(store: LabelStore) -> None:
    """What was under way then counts twice, as lost and as it was: rather too much than too little."""

    async def go() -> None:
        book = CallBook(store, "r-1", Cap(1000, None), "me")
        for key in "ab":
            await book.open(key * 64, Amount(100, 700))
        assert settle_abandoned(store, "r-1", lambda owner: True) == Amount(200, 1400)
        await book.close(record("a" * 64), Amount(100, 700))
        assert books_balance(store) == (210, 100)
        await book.close(record("b" * 64), Amount(100, 700))
        assert books_balance(store) == (220, 0)
        await book.shut()

    asyncio.run(go())


def calls(store: LabelStore) -> list[tuple[str | None, str]]:
    with store.reading() as connection:
        return [(row[0], row[1]) for row in connection.execute(select(LLMCall.key, LLMCall.endpoint))]


def many_calls(store: LabelStore, trouble: Callable[[], None], rounds: int) -> None:
    """64 calls under way at all times while there is trouble: each is entered once, keyed or not."""
    number = 64 * rounds

    async def one(book: CallBook, turns: asyncio.Semaphore, n: int) -> None:
        async with turns:
            keyed = n % 4 != 0
            key = f"{n:064x}" if keyed else None
            assert await book.open(key, Amount(100, 700)) is None
            await asyncio.sleep(0.05)
            entered = CallRecord(
                key, f"call {n}", "m", "fuzz", "s", n, 10 + n, 0, 0, 7 * n, "{}" if keyed else None, 0.1
            )
            assert await book.close(entered, Amount(100, 700)) is None

    async def go() -> None:
        book = CallBook(store, "r-1", Cap(None, None), "me")
        turns = asyncio.Semaphore(64)
        thread = threading.Thread(target=trouble)
        thread.start()
        await asyncio.gather(*(one(book, turns, n) for n in range(number)))
        await book.shut()
        thread.join()

    asyncio.run(go())
    assert sorted(calls(store), key=lambda row: int(row[1].split()[1])) == [
        (f"{n:064x}" if n % 4 else None, f"call {n}") for n in range(number)
    ]
    assert books_balance(store) == (sum(10 + n for n in range(number)), 0)


def test_64_calls_through_sessions_that_are_ended(
    store: LabelStore, postgres_server: PostgresServer, postgres_url: str
) -> None:
    ended = []

    def trouble() -> None:
        for _ in range(25):
            time.sleep(0.08)
            ended.append(len(postgres_server.execute(END_ALL.format(database(postgres_url)))))

    many_calls(store, trouble, rounds=12)
    assert sum(ended) > 5


@pytest.mark.parametrize("end", ["stop", pytest.param("kill", marks=pytest.mark.long)])
def test_64_calls_through_a_server_that_is_stopped_and_started(end: str) -> None:
    with PostgresServer() as server:
        store = open_store(server.new_database())
        add_run(store, "r-1")

        def trouble() -> None:
            for _ in range(3):
                time.sleep(0.3)
                getattr(server, end)()
                time.sleep(0.5)
                server.start()

        many_calls(store, trouble, rounds=16)
        store.close()


def test_an_outage_that_lasts_is_an_error_in_the_end(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def away() -> None:
        asked.append(time.monotonic())
        raise StoreUnavailableError("away")

    with pytest.raises(StoreUnavailableError, match="away"):
        failures.ride_out(away, 1.0)
    waits = [b - a for a, b in pairwise(asked)]
    assert asked[-1] - asked[0] <= 1.0
    assert waits[1] > 1.5 * waits[0]


def test_a_forked_child_has_connections_of_its_own(store_url: str, tmp_path: Path) -> None:
    store = open_store(store_url)
    add_run(store, "r-1")
    child = os.fork()
    if child == 0:
        try:
            after_fork(store)
            for _ in range(20):
                store._add([Timing(run_id="r-1", name="child", seconds=1.0)])
            store.close()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - the parent shows it
            (tmp_path / "error").write_text(repr(error))
        finally:
            os._exit(1)
    for _ in range(20):
        store._add([Timing(run_id="r-1", name="parent", seconds=1.0)])
    _, status = os.waitpid(child, 0)
    assert status == 0, (tmp_path / "error").read_text()
    assert store.timings("r-1") == {"child": 20.0, "parent": 20.0}
    store.close()
