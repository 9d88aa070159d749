"""Stages in threads and language models on a loop: results, stopping, probing once, closing."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import PrivateAttr

from autointerp.failure import FailureKind
from autointerp.llm.asking import AskFailed
from autointerp.llm.call_errors import CallError, Denied, Transient
from autointerp.llm.pricing import Budget
from autointerp.llm.protocol import Capability, Completion, CompletionRequest, LLMClient
from autointerp.llm.runtime import LLMRuntime
from autointerp.pipeline.interruption import Interrupted
from autointerp.store import LabelStore
from autointerp.store.calls import Amount, open_account, reserve
from autointerp.store.ledger import spend_by_latent, spend_by_purpose
from sae_core.errors import BudgetError, ConfigError, EndpointError
from tests.autointerp.scripted_server import FakeEndpoint, ScriptedServer, ask, body, books_balance, new_store, outcomes


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return new_store(tmp_path / "a.db")


def say(completion: Completion) -> str:
    return completion.text


class ProbedServer(ScriptedServer):
    """A server that gives several answers, and nothing else that can be probed."""

    async def send_with(
        self, request: CompletionRequest, deadline_s: float, extra: Mapping[str, Any], *, bound: bool = False
    ) -> str:
        reply = await self.send(request, deadline_s, bound=bound)
        return reply.replace(
            '"choices": [', '"choices": [{"index": 1, "message": {"content": "b"}, "finish_reason": "stop"},'
        )


class Opened(FakeEndpoint):
    """An endpoint whose clients the test sees; it fails with ``error``, or answers after ``latency_s``."""

    latency_s: float = 0.05
    known: bool = True
    _error: CallError | None = PrivateAttr(default=None)
    _clients: list[ProbedServer] = PrivateAttr(default_factory=list)
    NOT_IDENTITY: ClassVar[frozenset[str]] = FakeEndpoint.NOT_IDENTITY | {"latency_s", "known"}

    def open(self) -> LLMClient:
        async def script(request: CompletionRequest, number: int) -> str:
            await asyncio.sleep(self.latency_s)
            if self._error is not None:
                raise self._error
            return body("hello", prompt=20, answer=2)

        self._clients.append(ProbedServer(script))
        return self._clients[-1]

    def known_capabilities(self) -> frozenset[Capability] | None:
        return frozenset({Capability.JSON_SCHEMA}) if self.known else None


def runtime(store: LabelStore, *endpoints: FakeEndpoint, budget: Budget | None = None, owner: str = "me") -> LLMRuntime:
    return LLMRuntime(endpoints, store, "r-1", "r-1", budget or Budget(), owner)


def test_chunks_in_several_threads_share_one_loop_and_one_book(store: LabelStore) -> None:
    endpoint = Opened()
    results: dict[int, list[str]] = {}
    with runtime(store, endpoint) as llms:

        def stage(source: int) -> None:
            async def chunk() -> list[str]:
                async def latent(number: int) -> str:
                    llm = llms.llms(f"s{source}", number).of("", "detection")
                    assert (llm.name, llm.model, llm.capabilities) == ("default", "judge", {Capability.JSON_SCHEMA})
                    return (await llm.ask(ask(100 * source + number), say)).value

                return await asyncio.gather(*(latent(number) for number in range(20)))

            results[source] = llms.run(chunk)

        threads = [threading.Thread(target=stage, args=(n,)) for n in range(4)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began < 2.0, "80 calls of 0.05 s, and commits"
        assert results == {n: ["hello"] * 20 for n in range(4)}
        assert len(endpoint._clients) == 1
        assert llms.counts()["default"].calls == 80
    assert endpoint._clients[0].closed
    assert not any(thread.name == "llm" for thread in threading.enumerate())
    by_latent = [spend_by_latent(store, "r-1", f"s{n}", range(100)) for n in range(4)]
    assert [len(latents) for latents in by_latent] == [20] * 4
    assert by_latent[3][7].calls == 1
    assert books_balance(store) == (80 * 22, 0)


def test_stopping_cancels_what_is_under_way_and_waits_for_it(store: LabelStore) -> None:
    class Stop(BaseException):
        pass

    ended: list[str] = []
    with runtime(store, Opened(latency_s=60.0)) as llms:
        began = time.monotonic()

        async def chunk() -> None:
            try:
                await llms.llms("s", 1).of("", "fuzz").ask(ask(), say)
            finally:
                await asyncio.sleep(0.3)
                ended.append("ended")

        def poll() -> None:
            if time.monotonic() - began > 0.5:
                raise Stop

        with pytest.raises(Stop):
            llms.run(chunk, poll)
        assert ended == ["ended"]
        assert time.monotonic() - began < 5
        # the loop is still there for others
        assert llms.run(lambda: asyncio.sleep(0, "fine")) == "fine"
    assert outcomes(store) == {"lost": 1}
    spent, reserved = books_balance(store)
    assert (spent > 0, reserved) == (True, 0)


def waiting_calls(llms: LLMRuntime, count: int) -> Any:
    async def chunk() -> None:
        await asyncio.gather(*(llms.llms("s", n).of("", "fuzz").ask(ask(n), say) for n in range(count)))

    return chunk


@pytest.mark.parametrize("stop", [Interrupted(2), KeyboardInterrupt()])
def test_who_is_asked_to_stop_sends_nothing_more_and_keeps_the_replies_of_calls_under_way(
    store: LabelStore, stop: BaseException
) -> None:
    endpoint = Opened(latency_s=1.0, max_concurrency=4)
    with runtime(store, endpoint) as llms:

        def poll() -> None:
            if endpoint._clients and endpoint._clients[0].busy == 4:
                raise stop

        with pytest.raises(type(stop)):
            llms.run(waiting_calls(llms, 20), poll)
        sent = len(endpoint._clients[0].sent)
    assert sent == 5, "the first one alone, then four"
    assert outcomes(store) == {"reply": 5}
    assert books_balance(store) == (5 * 22, 0)


def test_who_asks_twice_to_stop_waits_for_nothing(store: LabelStore) -> None:
    endpoint = Opened(latency_s=60.0)
    began = time.monotonic()
    with runtime(store, endpoint) as llms:

        def poll() -> None:
            if endpoint._clients and endpoint._clients[0].busy:
                signal.setitimer(signal.ITIMER_REAL, 0.5)
                raise Interrupted(2)

        def again(number: int, frame: object) -> None:
            raise Interrupted(15)

        before = signal.signal(signal.SIGALRM, again)
        try:
            with pytest.raises(Interrupted) as caught:
                llms.run(waiting_calls(llms, 3), poll)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert caught.value.signal_number == 15
    assert time.monotonic() - began < 5
    assert outcomes(store) == {"lost": 1}
    assert books_balance(store)[1] == 0


def test_calls_that_take_long_are_cut_off_all_the_same(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autointerp.llm.runtime._DRAIN_S", 0.5)
    endpoint = Opened(latency_s=60.0)
    began = time.monotonic()
    with runtime(store, endpoint) as llms:

        def poll() -> None:
            if endpoint._clients and endpoint._clients[0].busy:
                raise Interrupted(2)

        with pytest.raises(Interrupted):
            llms.run(waiting_calls(llms, 3), poll)
    assert 0.5 < time.monotonic() - began < 5
    assert outcomes(store) == {"lost": 1}


def test_an_error_of_the_coroutine_is_the_callers(store: LabelStore) -> None:
    async def wrong() -> None:
        raise ZeroDivisionError("mine")

    async def timeout() -> None:
        raise TimeoutError("mine too")

    with runtime(store) as llms:
        with pytest.raises(ZeroDivisionError, match="mine"):
            llms.run(wrong)
        with pytest.raises(TimeoutError, match="mine too"):
            llms.run(timeout)
        with pytest.raises(ConfigError, match="no language model is configured"):
            llms.open([""])
    llms.close()


def test_a_server_is_probed_once_a_run_and_probes_are_paid(store: LabelStore) -> None:
    endpoint = Opened(known=False, latency_s=0.0)
    with runtime(store, endpoint) as llms:
        assert llms.capabilities("") == {Capability.SAMPLES}
    probes = spend_by_purpose(store, "r-1")["probe", "default"].calls
    assert probes == len(endpoint._clients[0].sent) > 3
    assert books_balance(store)[0] == probes * 22
    again = Opened(known=False, latency_s=0.0)
    with runtime(store, again, owner="another") as llms:
        assert llms.capabilities("default") == {Capability.SAMPLES}
        assert again._clients[0].sent == [], "it is known from the first time"
    assert spend_by_purpose(store, "r-1")["probe", "default"].calls == probes


@pytest.mark.parametrize(
    "error", [Denied("the server does not accept MY_KEY (HTTP 401)."), Transient("connection refused")]
)
def test_a_server_that_cannot_be_probed_is_said_in_a_sentence(store: LabelStore, error: CallError) -> None:
    endpoint = Opened(known=False, latency_s=0.0)
    endpoint._error = error
    with runtime(store, endpoint) as llms, pytest.raises(EndpointError, match="run the same command again") as caught:
        llms.run(lambda: asyncio.sleep(0))
    assert str(error).rstrip(".") + ";" in str(caught.value)
    assert all(client.closed for client in endpoint._clients)
    assert books_balance(store) == (0, 0)


def test_unknown_names_and_prices_are_refused_before_anything_is_sent(store: LabelStore) -> None:
    with runtime(store, Opened(name="judge"), Opened(name="explainer")) as llms:
        with pytest.raises(ConfigError, match="did you mean 'judge'"):
            llms.capabilities("juge")
        assert llms.endpoint("").name == "judge"
    priceless = Opened(usd_per_million_input_tokens=None)
    with runtime(store, priceless, budget=Budget(usd=1.0)) as llms, pytest.raises(ConfigError, match="is not known"):
        llms.run(lambda: asyncio.sleep(0))
    assert priceless._clients == []


def test_the_budget_is_one_for_all_endpoints_and_can_be_raised_at_the_next_start(store: LabelStore) -> None:
    def go(budget: Budget, owner: str) -> tuple[int, int]:
        endpoints = [Opened(name="a"), Opened(name="b")]
        with runtime(store, *endpoints, budget=budget, owner=owner) as llms:

            async def chunk() -> list[Any]:
                llm = [llms.llms("s", 1).of(name, "fuzz") for name in ("a", "b")]
                tasks = [llm[n % 2].ask(ask(n), say) for n in range(60)]
                return await asyncio.gather(*tasks, return_exceptions=True)

            found = llms.run(chunk)
        refused = sum(isinstance(answer, BudgetError) for answer in found)
        return refused, sum(len(client.sent) for e in endpoints for client in e._clients)

    refused, first = go(Budget(tokens=800), "one")
    assert 0 < refused == 60 - first
    assert books_balance(store)[0] <= 800
    assert go(Budget(tokens=100_000), "two") == (0, 60 - first)
    assert books_balance(store) == (60 * 22, 0)


def test_what_dead_processes_left_is_settled_at_the_start(store: LabelStore) -> None:
    with store.writing() as connection:
        for owner in ("dead", "alive"):
            open_account(connection, "r-1", owner)
            reserve(connection, "r-1", owner, Amount(70, 700))
    endpoint = Opened()
    llms = LLMRuntime([endpoint], store, "r-1", "r-1", Budget(tokens=1000), "me", is_gone=lambda owner: owner == "dead")
    with llms:
        llms.open()
    assert books_balance(store) == (70, 70)
    assert (
        sum(part.lost for (purpose, _), part in spend_by_purpose(store, "r-1").items() if purpose == "abandoned") == 1
    )


def test_closing_with_calls_under_way_ends_them_and_keeps_the_books(store: LabelStore) -> None:
    llms = runtime(store, Opened(latency_s=60.0))
    failed: list[asyncio.CancelledError] = []

    async def chunk() -> None:
        await asyncio.gather(*(llms.llms("s", n).of("", "fuzz").ask(ask(n), say) for n in range(5)))

    def stage() -> None:
        try:
            llms.run(chunk)
        except asyncio.CancelledError as error:
            failed.append(error)

    thread = threading.Thread(target=stage)
    thread.start()
    time.sleep(0.5)
    llms.close()
    thread.join(5)
    assert not thread.is_alive()
    assert len(failed) == 1
    assert books_balance(store)[1] == 0


def test_a_failure_of_a_call_is_typed(store: LabelStore) -> None:
    endpoint = Opened(give_up_s=0.001)
    endpoint._error = Transient("reset")
    with runtime(store, endpoint) as llms, pytest.raises(AskFailed) as caught:
        llms.run(lambda: llms.llms("s", 1).of("", "fuzz").ask(ask(), say))
    assert caught.value.failure.kind is FailureKind.SERVER_ERROR
