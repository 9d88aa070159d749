"""Money of batches: whatever becomes of the process, the books have in the end what the provider billed, each request once."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from autointerp.cluster.reconciling import ClusterReconciler
from autointerp.cluster.settings import WorkerSettings
from autointerp.llm.call_book import CallBook
from autointerp.llm.call_errors import InvalidReply
from autointerp.llm.endpoints.openai_batch import OpenAIBatchEndpoint
from autointerp.llm.pricing import Budget
from autointerp.llm.protocol import CompletionRequest, Message
from autointerp.llm.runtime import LLMRuntime
from autointerp.llm.session import CallPlace
from autointerp.pipeline.driver import LocalDriver
from autointerp.pipeline.interruption import Halted, Stopped
from autointerp.progress import SilentDisplay
from autointerp.store.calls import Amount, CallRecord, CallUnderWay, Cap, change_calls_under_way, open_account
from autointerp.store.ledger import spend
from autointerp.store.store import LabelStore
from sae_core.errors import EndpointError
from tests import pipeline_world
from tests.autointerp.batch_server import BatchServer, Play
from tests.autointerp.scripted_server import books_balance, new_store, outcomes

ROOT = Path(__file__).parents[2]
BILLED = 13
"""Tokens that the provider bills for each request."""

CHILD = """
import asyncio, json, os, sys
from pathlib import Path
os.environ["BATCH_TEST_KEY"] = f"pid-{os.getpid()}"
from autointerp.llm.endpoints.openai_batch import OpenAIBatchEndpoint
from autointerp.llm.pricing import Budget
from autointerp.llm.protocol import CompletionRequest, Message
from autointerp.llm.runtime import LLMRuntime
from autointerp.llm.session import CallPlace
from autointerp.pipeline.owner import Owner
from autointerp.store.opening import open_store
from tests.autointerp.scripted_server import sqlite_url

url, folder, questions = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
endpoint = OpenAIBatchEndpoint(
    model="m", base_url=url, api_key_env="BATCH_TEST_KEY", window_s=0.05, poll_s=0.02, most_requests=4,
    usd_per_million_input_tokens=1.0, usd_per_million_output_tokens=4.0, json_mode="schema",
)
store = open_store(sqlite_url(folder / "a.db"))
requests = [CompletionRequest(messages=(Message(role="user", content=q),), max_tokens=50) for q in questions]
with LLMRuntime(
    [endpoint], store, "r-1", "r-1", Budget(usd=1.0), str(Owner.of_this_process()), folder=folder
) as runtime:
    async def work():
        place = CallPlace("s", 0, "label")
        return await asyncio.gather(*(runtime.session("").complete(request, place) for request in requests))
    print(json.dumps([completion.text for completion in runtime.run(work)]))
store.close()
"""


class _NoBroker:
    """Implements ``Broker`` where nobody listens."""

    def depth(self, queue: str) -> int:
        """None wait."""
        return 0

    def hint(self, queue: str, count: int = 1) -> None:
        """Nobody hears it."""


def child(server: BatchServer, folder: Path, questions: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, server.base_url, str(folder), json.dumps(questions)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)


@pytest.mark.long
@pytest.mark.parametrize("event", ["uploaded", "created", "polled", "downloading"])
def test_a_killed_process_batches_are_entered_once(tmp_path: Path, event: str) -> None:
    questions = [f"q{number}" for number in range(10)]
    with BatchServer() as server, closing(new_store(tmp_path / "a.db")) as store:
        server.kill_at = event
        killed = child(server, tmp_path, questions)
        assert killed.returncode == -9, killed.stderr
        _, reserved = books_balance(store)
        assert reserved > 0, "what may have been billed counts against the budget meanwhile"
        done = child(server, tmp_path, questions)
        assert done.returncode == 0, done.stderr
        assert server.paid == dict.fromkeys(questions, 1)
        kept = outcomes(store)
        probed = server.seen["chats"] * BILLED
        assert books_balance(store) == (10 * BILLED + probed, 0)
        assert "lost" not in kept


def ask(
    server: BatchServer,
    store: LabelStore,
    folder: Path,
    owner: str,
    stop_after_s: float | None = None,
    until: Callable[[], bool] = lambda: False,
    asks_again: bool = False,
    **fields: Any,
) -> list[str]:
    """What a process of its own, as far as the books know, gets for ten questions.

    Errors: Stopped after ``stop_after_s`` in a batch, and as soon as ``until`` holds.
    """
    endpoint = OpenAIBatchEndpoint(
        model="m", base_url=server.base_url, **{"window_s": 0.05, "poll_s": 0.02, "json_mode": "schema", **fields}
    )
    requests = [CompletionRequest(messages=(Message(role="user", content=f"q{n}"),), max_tokens=50) for n in range(10)]
    begun_s = time.monotonic()

    def poll() -> None:
        if until() or (stop_after_s is not None and time.monotonic() > begun_s + stop_after_s and server.batches):
            raise Stopped

    with LLMRuntime([endpoint], store, "r-1", "r-1", Budget(), owner, folder=folder, asks_again=asks_again) as runtime:

        async def work() -> list[str]:
            place = CallPlace("s", 0, "label")
            found = await asyncio.gather(*(runtime.session("").complete(request, place) for request in requests))
            return [completion.text for completion in found]

        return runtime.run(work, poll)


def test_a_run_that_is_stopped_in_a_batch_enters_it_when_it_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autointerp.llm.runtime._DRAIN_S", 0.2)
    slow = Play(polls=10**6)
    with BatchServer([slow]) as server, closing(new_store(tmp_path / "a.db")) as store:
        with pytest.raises(Stopped):
            ask(server, store, tmp_path, "first", stop_after_s=1.0)
        probed = server.seen["chats"] * BILLED
        spent, reserved = books_balance(store)
        assert spent == probed
        assert reserved > 10 * BILLED, "the batch goes on, and its money stays reserved"
        with pytest.raises(Stopped):  # whoever waits once more reserves nothing more
            ask(server, store, tmp_path, "second", stop_after_s=1.0)
        assert books_balance(store) == (spent, reserved)
        slow.polls = 0
        assert ask(server, store, tmp_path, "third") == [f"answer to q{number}" for number in range(10)]
        assert books_balance(store) == (probed + 10 * BILLED, 0)
        assert len(server.batches) == 1


def test_a_try_that_is_given_up_and_joins_its_batch_again_is_entered_once(tmp_path: Path) -> None:
    with BatchServer([Play(polls=60)]) as server, closing(new_store(tmp_path / "a.db")) as store:
        assert len(ask(server, store, tmp_path, "first", timeout_s=0.4)) == 10
        assert len(server.batches) == 1
        assert books_balance(store) == (server.seen["chats"] * BILLED + 10 * BILLED, 0)
        assert "lost" not in outcomes(store)


def test_a_process_that_runs_already_joins_the_batches_of_one_that_died_meanwhile(tmp_path: Path) -> None:
    """As a worker of a cluster does, which goes on with a dead worker's chunk."""

    def request(text: str) -> CompletionRequest:
        return CompletionRequest(messages=(Message(role="user", content=text),), max_tokens=50)

    async def main(server: BatchServer) -> None:
        endpoint = OpenAIBatchEndpoint(model="m", base_url=server.base_url, window_s=0.05, poll_s=0.02)
        living, dying = endpoint.open_in(tmp_path), endpoint.open_in(tmp_path)
        await living.send(request("its own"), 20.0, bound=False)  # what stood in the journal is read by now
        cut_off = asyncio.create_task(dying.send(request("q"), 20.0, bound=False))
        while len(server.batches) < 2:
            await asyncio.sleep(0.02)
        cut_off.cancel()
        await asyncio.gather(cut_off, return_exceptions=True)
        await dying.close()
        await living.send(request("q"), 20.0, bound=False)
        await living.close()

    with BatchServer([Play(), Play(polls=30)]) as server:
        asyncio.run(main(server))
        assert server.paid == {"its own": 1, "q": 1}
        assert len(server.batches) == 2


def test_an_earlier_batch_that_is_gone_is_entered_as_lost_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been billed: what was reserved for it is spent, and the new one's bill comes on top."""
    monkeypatch.setattr("autointerp.llm.runtime._DRAIN_S", 0.2)
    with BatchServer([Play(polls=10**6)]) as server, closing(new_store(tmp_path / "a.db")) as store:
        with pytest.raises(Stopped):
            ask(server, store, tmp_path, "first", stop_after_s=1.0)
        probed, reserved = books_balance(store)
        server.batches.clear()
        assert len(ask(server, store, tmp_path, "second")) == 10
        assert books_balance(store) == (probed + reserved + 10 * BILLED, 0)
        assert outcomes(store)["lost"] == 10
        assert server.paid == {f"q{number}": 1 for number in range(10)}


def test_a_machine_that_cannot_find_a_batch_reserves_for_its_own_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are billed, so both count: the first stays reserved until somebody in its folder collects it."""
    monkeypatch.setattr("autointerp.llm.runtime._DRAIN_S", 0.2)
    slow = Play(polls=10**6)
    here, there = tmp_path / "here", tmp_path / "there"
    with BatchServer([slow]) as server, closing(new_store(tmp_path / "a.db")) as store:
        with pytest.raises(Stopped):
            ask(server, store, here, "first", stop_after_s=1.0)
        probed, reserved = books_balance(store)
        assert len(ask(server, store, there, "second")) == 10
        assert len(server.batches) == 2
        assert books_balance(store) == (probed + 10 * BILLED, reserved)


@pytest.mark.parametrize("fault", ["silent", "garbage"])
@pytest.mark.parametrize("window_s", [0.05, 1.0])
def test_what_one_process_has_entered_as_lost_the_next_one_does_not_enter_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, window_s: float
) -> None:
    """The process ends before it has asked again: in the pause before it, or (a long window) while it waits for company."""
    monkeypatch.setattr("autointerp.llm.runtime._DRAIN_S", 0.1)
    with BatchServer([Play(**{fault: {0}})]) as server, closing(new_store(tmp_path / "a.db")) as store:
        lost_s: list[float] = []

        def until() -> bool:
            if outcomes(store).get("lost"):
                lost_s.append(time.monotonic())
            return bool(lost_s) and lost_s[-1] - lost_s[0] > (0.0 if window_s < 1 else 0.8)

        with pytest.raises(Stopped):
            ask(server, store, tmp_path, "first", until=until, window_s=window_s)
        spent, reserved = books_balance(store)
        assert outcomes(store)["lost"] == 1
        assert len(server.batches) == 1
        assert reserved == 0, "nothing of it is at the provider"
        assert len(ask(server, store, tmp_path, "second")) == 10
        assert outcomes(store)["lost"] == 1
        assert books_balance(store) == (spent + BILLED, 0)
        assert len(server.batches) == 2


@pytest.mark.long
def test_what_was_lost_before_a_kill_in_the_next_try_is_not_entered_again(tmp_path: Path) -> None:
    """Then a reservation stands, but it is younger than the batch that is found in the journal."""
    with BatchServer([Play(silent={0})]) as server, closing(new_store(tmp_path / "a.db")) as store:

        def kill_second() -> None:
            while not server.seen["created"]:
                time.sleep(0.01)
            server.kill_at = "uploaded"

        threading.Thread(target=kill_second, daemon=True).start()
        killed = child(server, tmp_path, ["q0", "q1"])
        assert killed.returncode == -9, killed.stderr
        assert outcomes(store)["lost"] == 1
        spent, reserved = books_balance(store)
        assert reserved > 0
        done = child(server, tmp_path, ["q0", "q1"])
        assert done.returncode == 0, done.stderr
        assert outcomes(store)["lost"] == 1
        assert books_balance(store) == (spent + BILLED, 0)
        assert server.paid == {"q0": 1, "q1": 1}


def test_a_kept_reply_that_cannot_be_used_is_asked_for_again_and_not_found_in_its_old_batch(tmp_path: Path) -> None:
    broken = {"on": True}
    with BatchServer() as server, closing(new_store(tmp_path / "a.db")) as store:
        server.finish = lambda question: "nonsense" if broken["on"] and question == "q0" else "stop"
        with pytest.raises(InvalidReply):
            ask(server, store, tmp_path, "first")
        spent, reserved = books_balance(store)
        assert (server.paid["q0"], reserved) == (2, 0)
        batches = len(server.batches)
        broken["on"] = False
        assert len(ask(server, store, tmp_path, "second", asks_again=True)) == 10
        assert server.paid["q0"] == 3
        assert len(server.batches) == batches + 1
        assert books_balance(store) == (spent + BILLED, 0)


def test_two_live_processes_that_wait_for_one_batch_enter_it_once(tmp_path: Path) -> None:
    with BatchServer([Play(polls=60)]) as server, closing(new_store(tmp_path / "a.db")) as store:
        answers: list[list[str]] = []
        first = threading.Thread(target=lambda: answers.append(ask(server, store, tmp_path, "first")))
        first.start()
        while not server.seen["polled"]:
            time.sleep(0.02)
        answers.append(ask(server, store, tmp_path, "second"))
        first.join()
        assert answers[0] == answers[1] == [f"answer to q{number}" for number in range(10)]
        assert len(server.batches) == 1
        assert books_balance(store) == (server.seen["chats"] * BILLED + 10 * BILLED, 0)
        assert outcomes(store) == {"reply": 10 + server.seen["chats"]}


def test_who_has_sent_nothing_leaves_the_reservation_of_who_joined_it(tmp_path: Path) -> None:
    async def main() -> None:
        first, second = (CallBook(store, "r-1", Cap(100, None), owner) for owner in ("first", "second"))
        await first.open("k", Amount(90, 0), "s/k")
        await second.open("k", Amount(90, 0), "s/k")
        await first.close(None, Amount(90, 0), "s/k", "unsent")
        assert books_balance(store) == (0, 90), "the second one's call is under way"
        await second.close(None, Amount(90, 0), "s/k", "settled")
        assert books_balance(store) == (0, 0)
        await first.shut()
        await second.shut()

    with closing(new_store(tmp_path / "a.db")) as store:
        asyncio.run(main())


def test_what_two_processes_wait_for_and_is_lost_is_entered_by_the_first(tmp_path: Path) -> None:
    lost = CallRecord(None, "e", "m", "label", "s", 0, 90, 0, 0, None, None, 1.0)

    async def main() -> None:
        first, second = (CallBook(store, "r-1", Cap(200, None), owner) for owner in ("first", "second"))
        await first.open("k", Amount(90, 0), "s/k")
        await second.open("k", Amount(90, 0), "s/k")
        await first.close(lost, Amount(90, 0), "s/k")
        await first.open("k", Amount(90, 0), "s/k")  # asks again
        await second.close(lost, Amount(90, 0), "s/k", "collected")
        assert books_balance(store) == (90, 90), "entered once, and the first one's new call is under way"
        await first.shut()
        await second.shut()

    with closing(new_store(tmp_path / "a.db")) as store:
        asyncio.run(main())


def test_nothing_stays_reserved_for_what_a_wrong_key_kept_from_being_sent(tmp_path: Path) -> None:
    refuse = web.json_response({"error": {"message": "bad key", "code": "invalid_api_key"}}, status=401)
    with (
        BatchServer([Play(unmade=lambda: refuse)]) as server,
        closing(new_store(tmp_path / "a.db")) as store,
    ):
        with pytest.raises(EndpointError):
            ask(server, store, tmp_path, "first")
        assert books_balance(store) == (server.seen["chats"] * BILLED, 0)


@pytest.mark.parametrize("state", ["done", "cancelled", "paused"])
def test_an_ended_run_has_what_its_batches_may_cost_in_its_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """A paused one goes on and collects them; one that ended and goes on all the same enters them on top."""
    monkeypatch.setattr("autointerp.llm.runtime._DRAIN_S", 0.1)
    slow = Play(polls=10**6)
    with BatchServer([slow]) as server, closing(new_store(tmp_path / "a.db")) as store:
        with pytest.raises(Stopped):
            ask(server, store, tmp_path, "first", stop_after_s=1.0)
        probed, reserved = books_balance(store)
        store.set_run_state("r-1", state)
        reconciler = ClusterReconciler(store, _NoBroker(), WorkerSettings())
        reconciler.look()
        ended = state != "paused"
        assert books_balance(store) == ((probed + reserved, 0) if ended else (probed, reserved))
        assert spend(store, "r-1").lost == (10 if ended else 0)
        assert store.halted_with_reservations() == []
        slow.polls = 0
        assert len(ask(server, store, tmp_path, "third")) == 10
        assert books_balance(store) == (probed + 10 * BILLED + (reserved if ended else 0), 0)


@pytest.mark.parametrize("state", ["done", "cancelled", "paused"])
def test_a_run_on_this_machine_that_ends_enters_what_nobody_collects(tmp_path: Path, state: str) -> None:
    """As of a request that was given up while its batch went on."""
    context = pipeline_world.open_context(tmp_path / "run")
    store, run_id = context.store, context.run_id
    with store.writing() as connection:
        open_account(connection, run_id, "gone")
        change_calls_under_way(connection, run_id, {}, {"s/k": CallUnderWay(Amount(90, 7), 1)})

    class Stopping(SilentDisplay):
        def advance(self, stage: str, units_in_chunk: int) -> None:
            if state != "done":
                store.set_run_state(run_id, state)

    driver = LocalDriver(context, pipeline_world.STAGES, Stopping())
    with nullcontext() if state == "done" else pytest.raises(Halted):
        driver.run()
    assert store.run(run_id).state == state
    assert books_balance(store, run_id) == ((0, 90) if state == "paused" else (90, 0))
