"""Money of batches: whatever becomes of the process, the books have in the end what the provider billed, each request once."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from autointerp.llm.endpoints.openai_batch import OpenAIBatchEndpoint
from autointerp.llm.pricing import Budget
from autointerp.llm.protocol import CompletionRequest, Message
from autointerp.llm.runtime import LLMRuntime
from autointerp.llm.session import CallPlace
from autointerp.pipeline.interruption import Stopped
from autointerp.store.store import LabelStore
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


def child(server: BatchServer, folder: Path, questions: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, server.base_url, str(folder), json.dumps(questions)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)


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
    server: BatchServer, store: LabelStore, folder: Path, owner: str, stop_after_s: float | None = None, **fields: Any
) -> list[str]:
    """What a process of its own, as far as the books know, gets for ten questions. Errors: Stopped after ``stop_after_s``."""
    endpoint = OpenAIBatchEndpoint(
        model="m", base_url=server.base_url, **{"window_s": 0.05, "poll_s": 0.02, "json_mode": "schema", **fields}
    )
    requests = [CompletionRequest(messages=(Message(role="user", content=f"q{n}"),), max_tokens=50) for n in range(10)]
    begun_s = time.monotonic()

    def poll() -> None:
        if stop_after_s is not None and time.monotonic() > begun_s + stop_after_s and server.batches:
            raise Stopped

    with LLMRuntime([endpoint], store, "r-1", "r-1", Budget(), owner, folder=folder) as runtime:

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
