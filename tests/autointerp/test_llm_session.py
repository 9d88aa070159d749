"""The way to a server under RELIABILITY 5's faults (rows 15 to 20), with a scripted server on a clock that jumps."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autointerp.failure import FailureKind
from autointerp.judging.logprob_fallback import WithoutLogprobsAtNeed
from autointerp.llm.asking import AskFailed, BadAnswer, NoLogprobs
from autointerp.llm.call_book import CallBook
from autointerp.llm.call_errors import (
    CallError,
    Denied,
    Forbidden,
    InvalidReply,
    RateLimited,
    Refused,
    Rejected,
    Transient,
)
from autointerp.llm.pricing import Budget, most_amount, most_usage
from autointerp.llm.protocol import Capability, Completion, CompletionRequest
from autointerp.llm.server_line import ServerLine
from autointerp.llm.session import MOST_UNSAVED, CallPlace
from autointerp.store import LabelStore
from autointerp.store.calls import account, settle_abandoned
from autointerp.store.ledger import spend, spend_by_latent, spend_by_purpose
from sae_core.errors import BudgetError, ConfigError, EndpointError
from tests.autointerp.scripted_server import (
    PLACE,
    FakeEndpoint,
    ScriptedServer,
    after,
    ask,
    body,
    books_balance,
    new_session,
    new_store,
    outcomes,
)
from tests.autointerp.virtual_time import run_virtually

ROOT = Path(__file__).parents[2]
MOST = most_amount(most_usage(ask(), FakeEndpoint()), FakeEndpoint()).tokens
"""Tokens reserved for a request of ``ask`` with a number of one digit."""


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return new_store(tmp_path / "a.db")


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    run_virtually(main())


async def gathered(*tasks: Awaitable[Any]) -> list[Any]:
    return list(await asyncio.gather(*tasks, return_exceptions=True))


def say(completion: Completion) -> str:
    return completion.text


# what is stored


def test_a_second_session_of_the_scope_asks_nothing_again_and_another_scope_asks_afresh(store: LabelStore) -> None:
    async def main() -> None:
        first = ScriptedServer(after(0.1))
        session = new_session(store, first)
        new = await asyncio.gather(*(session.complete(ask(n), PLACE) for n in range(20)))
        await session.close()
        assert first.closed
        assert (len(first.sent), session.counts.calls, session.counts.replayed) == (20, 20, 0)

        second = ScriptedServer(after(0.1, "no"))
        session = new_session(store, second, owner="another")
        again = await asyncio.gather(*(session.complete(ask(n), PLACE) for n in range(20)))
        assert again == new, "usage and cost as well, so that a run that goes on writes the same rows"
        assert new[0].usage.cost_usd == pytest.approx(140e-6)
        assert (len(second.sent), session.counts.replayed) == (0, 20)
        await session.close()

        for fields in (
            {"scope": "r-1/night"},
            {"endpoint": FakeEndpoint(model="other")},
            {"endpoint": FakeEndpoint(name="b")},
        ):
            other = ScriptedServer(after(0.1, "no"))
            session = new_session(store, other, **fields)  # type: ignore[arg-type]
            assert (await session.complete(ask(3), PLACE)).text == "no"
            assert len(other.sent) == 1
            await session.close()
        moved = ScriptedServer(after(0.1, "no"))
        session = new_session(store, moved, endpoint=FakeEndpoint(timeout_s=7, usd_per_million_input_tokens=3.0))
        assert await session.complete(ask(3), PLACE) == new[3], "what decides no answer is not in the key"
        await session.close()

    run(main)
    assert books_balance(store) == (23 * 110, 0)


def test_every_field_of_a_request_that_decides_its_answer_makes_another_key(store: LabelStore) -> None:
    base = ask()
    variants = [
        base,
        ask(1),
        ask(max_tokens=51),
        ask(temperature=0.5),
        ask(seed=1),
        ask(sample=1),
        ask(json_schema={"type": "object"}),
        ask(json_schema={"type": "array"}),
        ask(prompt_hash="x"),
        CompletionRequest(text="Item 0?"),
        CompletionRequest(text="Item 0?\ud800"),
        base.model_copy(update={"messages": base.messages[1:]}),
    ]

    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            if request.text is None:
                return body(str(number))
            return json.dumps({"choices": [{"index": 0, "finish_reason": "stop", "text": str(number)}], "model": "m"})

        session = new_session(store, ScriptedServer(script))
        found = await asyncio.gather(*(session.complete(request, PLACE) for request in variants))
        assert len({completion.text for completion in found}) == len(variants)
        await session.close()

    run(main)


def test_equal_requests_under_way_are_one_call_even_if_the_first_caller_goes(store: LabelStore) -> None:
    async def main() -> None:
        server = ScriptedServer(after(1.0))
        session = new_session(store, server)
        tasks = [asyncio.ensure_future(session.complete(ask(), PLACE)) for _ in range(10)]
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        found = await gathered(*tasks)
        assert isinstance(found[0], asyncio.CancelledError)
        assert {completion.text for completion in found[1:]} == {"yes"}
        assert len(server.sent) == 2, "one that was cut off, and one for all the others"
        assert session.counts.joined >= 9
        await session.close()

    run(main)
    assert outcomes(store) == {"lost": 1, "reply": 1}
    assert books_balance(store) == (MOST + 110, 0)


def test_two_processes_that_ask_the_same_at_once_go_on_with_one_reply_and_both_are_paid(store: LabelStore) -> None:
    async def main() -> None:
        one = new_session(store, ScriptedServer(after(0.5, "one")), owner="one")
        two = new_session(store, ScriptedServer(after(1.0, "two")), owner="two")
        found = await asyncio.gather(one.complete(ask(), PLACE), two.complete(ask(), PLACE))
        assert [completion.text for completion in found] == ["one", "one"]
        await one.close()
        await two.close()

    run(main)
    assert outcomes(store) == {"reply": 2}
    assert books_balance(store) == (220, 0)


# row 15: rate limits


@pytest.mark.parametrize(
    ("told", "waited"), [(1.0, 1.0), (119.0, 119.0), (3600.0, 900.0), (None, 0.375), (-5.0, 0.375)]
)
def test_a_rate_limit_is_waited_for_by_all_and_cuts_once(store: LabelStore, told: float | None, waited: float) -> None:
    async def main() -> None:
        until = float("inf")

        async def script(request: CompletionRequest, number: int) -> str:
            nonlocal until
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(0.1)
            if number == 30:
                until = now + 0.1 + waited
            if number >= 30 and now < until:
                raise RateLimited("429: slow down", told)
            return body()

        server = ScriptedServer(script)
        session = new_session(store, server, endpoint=FakeEndpoint(max_concurrency=16))
        found = await asyncio.gather(*(session.complete(ask(n), PLACE) for n in range(100)))
        assert [completion.text for completion in found] == ["yes"] * 100
        refused = session.counts.limited
        assert 1 <= refused <= 16
        assert (len(server.sent), session.counts.retried) == (100 + refused, 0)
        # those under way with it, and then nobody until the time is over
        first = server.times[30]
        between = [t for t in server.times if first + 0.101 < t < first + 0.1 + waited - 0.01]
        assert len(between) <= (0 if told and told > 0 else 32), "others wait too"
        assert [(change.cause, change.limit) for change in session.limit.history][1] == ("cut", 12)
        assert [change.cause for change in session.limit.history].count("cut") == 1
        await session.close()

    run(main)
    assert books_balance(store) == (100 * 110, 0)


def test_others_hold_back_as_soon_as_one_is_told_to_wait() -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            if number == 0:
                raise RateLimited("429", 7.0)
            return body()

        loop = asyncio.get_running_loop()
        line = ServerLine(FakeEndpoint(), ScriptedServer(script), np.random.default_rng(0), loop.time)
        with pytest.raises(RateLimited):
            await line.send(await line.admit(), ask(), bound=False)
        assert await line.send(await line.admit(), ask(), bound=False) == body()
        assert 7.0 <= loop.time() <= 8.0

    run(main)


def test_a_server_that_knows_nothing_but_429_stops_the_run_and_no_latent_fails(store: LabelStore) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            raise RateLimited("429: slow down", 60.0)

        server = ScriptedServer(script)
        session = new_session(store, server, endpoint=FakeEndpoint(give_up_s=300, max_concurrency=4))
        found = await gathered(*(session.complete(ask(n), PLACE) for n in range(8)))
        assert all(isinstance(error, EndpointError) for error in found)
        assert "429" in str(found[0])
        assert 2400 < asyncio.get_running_loop().time() < 2800
        assert session.counts.failed == {}
        await session.close()

    run(main)
    assert books_balance(store) == (0, 0)


# row 16: errors that may be over at the next try


def test_a_third_of_all_calls_failing_neither_cuts_nor_loses_anything(store: LabelStore) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            await asyncio.sleep(0.1)
            if number % 3 == 1:
                raise [Transient("502", status=502), Transient("500", status=500), Transient("reset")][number % 9 // 3]
            return body()

        server = ScriptedServer(script)
        session = new_session(store, server, endpoint=FakeEndpoint(max_concurrency=16))
        await asyncio.gather(*(session.complete(ask(n), PLACE) for n in range(200)))
        assert len(session.limit.history) == 1
        assert server.peak <= 16
        assert session.counts.retried == len(server.sent) - 200
        await session.close()

    run(main)
    assert books_balance(store) == (200 * 110, 0)


@pytest.mark.parametrize(
    ("error", "calls", "kind", "lost"),
    [
        (Transient("500: oops", status=500), 6, "server_error", 0),
        (Transient("reset", maybe_paid=True), 6, "server_error", 6),
        (Transient("slow", timed_out=True, maybe_paid=True), 3, "timeout", 3),
        (Rejected("400: the prompt is too long"), 1, "server_error", 0),
        (InvalidReply("longer than 1 MiB"), 2, "server_error", 2),
    ],
)
def test_one_request_that_always_fails_is_a_typed_failure_of_its_own(
    store: LabelStore, error: CallError, calls: int, kind: str, lost: int
) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            await asyncio.sleep(0.1)
            if "Item 5?" in request.messages[-1].content:
                raise error
            return body()

        server = ScriptedServer(script)
        session = new_session(store, server)
        llms = [session.bound("s", n, "detection") for n in range(10)]
        found = await gathered(*(llm.ask(ask(n), say) for n, llm in enumerate(llms)))
        assert [n for n, answer in enumerate(found) if isinstance(answer, Exception)] == [5]
        assert isinstance(found[5], AskFailed)
        assert (found[5].failure.kind, found[5].failure.message) == (kind, str(error))
        assert len(server.sent) == 9 + calls
        assert session.counts.failed == {kind: 1}
        await session.close()

    run(main)
    assert outcomes(store).get("lost", 0) == lost
    item = most_amount(most_usage(ask(5), FakeEndpoint()), FakeEndpoint()).tokens
    assert books_balance(store) == (9 * 110 + lost * item, 0)


def test_a_server_that_answers_500_to_log_probabilities_is_not_asked_again_and_again(store: LabelStore) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            raise Transient("500: Out of range float values are not JSON compliant", status=500)

        server = ScriptedServer(script)
        session = new_session(store, server)
        with pytest.raises(Transient):
            await session.complete(ask(top_logprobs=5), PLACE)
        assert len(server.sent) == 2
        await session.close()

    run(main)


def test_a_server_that_dies_in_mid_run_pauses_the_run_instead_of_failing_its_latents(store: LabelStore) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            if number >= 40:
                raise Transient("connection refused")
            await asyncio.sleep(0.1)
            return body()

        session = new_session(store, ScriptedServer(script), endpoint=FakeEndpoint(max_concurrency=16))
        found = await gathered(*(session.complete(ask(n), PLACE) for n in range(100)))
        assert sum(isinstance(answer, Completion) for answer in found) == 40
        assert sum(isinstance(answer, EndpointError) for answer in found) == 60
        assert "see whether the server runs" in str(next(a for a in found if isinstance(a, EndpointError)))
        await session.close()

    run(main)
    assert books_balance(store) == (40 * 110, 0)


# row 17: hanging


def test_a_client_that_hangs_beyond_its_deadline_is_cut_off_and_entered_as_lost(store: LabelStore) -> None:
    async def main() -> None:
        session = new_session(store, ScriptedServer(after(10_000)), endpoint=FakeEndpoint(timeout_s=20.0))
        with pytest.raises(Transient) as caught:
            await session.complete(ask(), PLACE)
        assert caught.value.kind is FailureKind.TIMEOUT
        assert 75 <= asyncio.get_running_loop().time() < 80
        await session.close()

    run(main)
    assert outcomes(store) == {"lost": 3}
    assert books_balance(store) == (3 * MOST, 0)


# row 18: garbage


@pytest.mark.parametrize("garbage", ['{"id": "x", "choi', '{"choices": [{"index": 0}]}', "[" * 100_000])
def test_garbage_is_asked_once_more_and_then_kept_so_that_it_is_not_asked_for_ever(
    store: LabelStore, garbage: str
) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            return garbage

        server = ScriptedServer(script)
        for _ in range(2):
            session = new_session(store, server)
            with pytest.raises(InvalidReply):
                await session.complete(ask(), PLACE)
            await session.close()
        assert len(server.sent) == 2
        elsewhere = new_session(store, ScriptedServer(after(0)), scope="tomorrow")
        assert (await elsewhere.complete(ask(), PLACE)).text == "yes"
        await elsewhere.close()
        still = ScriptedServer(script)
        session = new_session(store, still, asks_again=True)
        for _ in range(2):
            with pytest.raises(InvalidReply):
                await session.complete(ask(), PLACE)
        assert len(still.sent) == 2, "asked again once, by a session that is to"
        await session.close()
        session = new_session(store, ScriptedServer(after(0)), asks_again=True)
        assert (await session.complete(ask(), PLACE)).text == "yes"
        await session.close()

    run(main)
    assert books_balance(store) == (4 * MOST + 220, 0), "nobody knows what garbage cost: all that was reserved"


PAGE = "<html>Back soon</html>"


@pytest.mark.parametrize("trouble", [PAGE, "", '{"error": {"message": "slow down", "code": 429}}', "data: {}\n\n"])
def test_a_burst_of_what_is_no_reply_fails_no_request(store: LabelStore, trouble: str) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            await asyncio.sleep(0.05)
            now = asyncio.get_running_loop().time()
            return trouble if 0.2 < now < 3.0 else body()

        session = new_session(store, ScriptedServer(script), endpoint=FakeEndpoint(max_concurrency=16))
        found = await gathered(*(session.complete(ask(n), PLACE) for n in range(100)))
        assert [getattr(answer, "text", answer) for answer in found] == ["yes"] * 100
        assert session.counts.failed == {}
        assert (session.counts.limited > 0) is ("429" in trouble)
        await session.close()

    run(main)
    lost = outcomes(store).get("lost", 0)
    assert (lost > 0) is (trouble in ("", "data: {}\n\n")), "a page of HTML is a gateway's, and a refusal costs nothing"
    assert outcomes(store)["reply"] == 100
    assert books_balance(store)[1] == 0


@pytest.mark.parametrize("trouble", [PAGE, '{"choices": []}', "data: {}\n\n"])
def test_where_that_goes_on_the_run_pauses_and_nothing_of_it_is_kept(store: LabelStore, trouble: str) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            await asyncio.sleep(0.05)
            return body() if number < 5 else trouble

        server = ScriptedServer(script)
        session = new_session(store, server, endpoint=FakeEndpoint(max_concurrency=4))
        found = await gathered(*(session.complete(ask(n), PLACE) for n in range(30)))
        assert sum(isinstance(answer, Completion) for answer in found) == 5
        assert sum(isinstance(answer, EndpointError) for answer in found) == 25
        assert len(server.sent) <= 5 + 4 + 8, "once it is plain, one asks for all"
        assert 30 < asyncio.get_running_loop().time() < 60
        assert "no reply of the API" in str(found[29])
        assert session.counts.failed.get("server_error", 0) == 0
        await session.close()
        well = ScriptedServer(after(0))
        session = new_session(store, well)
        await asyncio.gather(*(session.complete(ask(n), PLACE) for n in range(30)))
        assert len(well.sent) == 25
        await session.close()

    run(main)


def test_a_request_that_always_gets_a_page_is_a_failure_of_its_own(store: LabelStore) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            await asyncio.sleep(0.05)
            return PAGE if "Item 5?" in request.messages[-1].content else body()

        server = ScriptedServer(script)
        session = new_session(store, server)
        found = await gathered(*(session.complete(ask(n), PLACE) for n in range(10)))
        assert [n for n, answer in enumerate(found) if isinstance(answer, Exception)] == [5]
        assert session.counts.failed == {"server_error": 1}
        assert len(server.sent) == 9 + 6
        await session.close()

    run(main)


# moderation, and what a server forbids


def moderated(request: CompletionRequest, error: CallError, *numbers: int) -> None:
    if any(f"Item {n}?" in request.messages[-1].content for n in numbers):
        raise error


def test_a_prompt_that_moderation_refuses_is_refused_without_another_try(store: LabelStore) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            moderated(request, Refused("the server's moderation refuses the prompt (HTTP 403)"), 0)
            return body()

        server = ScriptedServer(script)
        llm = new_session(store, server).bound("s", 1, "fuzz")
        found = await gathered(*(llm.ask(ask(n), say) for n in range(4)))
        assert isinstance(found[0], AskFailed)
        assert found[0].failure.kind is FailureKind.REFUSED
        assert len(server.sent) == 4

    run(main)


def test_a_403_is_the_request_s_own_failure_where_others_are_answered_also_after_a_restart(store: LabelStore) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            moderated(request, Forbidden("not permitted (HTTP 403)"), 5, 6)
            return body()

        server = ScriptedServer(script)
        session = new_session(store, server)
        for n in range(10):
            if n in (5, 6):
                with pytest.raises(Forbidden):
                    await session.complete(ask(n), PLACE)
            else:
                assert (await session.complete(ask(n), PLACE)).text == "yes"
        assert session.counts.failed == {"server_error": 2}
        assert len(server.sent) == 10
        await session.close()
        again = new_session(store, ScriptedServer(script))
        with pytest.raises(Forbidden):  # and no EndpointError, though it is the first one that is asked
            await again.complete(ask(5), PLACE)
        assert (await again.complete(ask(11), PLACE)).text == "yes"
        await again.close()

    run(main)


def test_403_to_several_requests_in_a_row_or_to_the_first_one_stops_the_run(store: LabelStore) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            moderated(request, Forbidden("not permitted (HTTP 403)"), *range(5, 50))
            return body()

        server = ScriptedServer(script)
        session = new_session(store, server)
        with pytest.raises(EndpointError, match="not permitted"):
            await session.complete(ask(7), PLACE)
        assert len(server.sent) == 1
        session = new_session(store, server)
        assert (await session.complete(ask(0), PLACE)).text == "yes"
        for n in (5, 5, 6):
            with pytest.raises(Forbidden):
                await session.complete(ask(n), PLACE)
        with pytest.raises(EndpointError, match="not permitted"):
            await session.complete(ask(7), PLACE)
        await session.close()

    run(main)


# log-probabilities that cannot be used


@pytest.mark.parametrize("spoiled", ["nan", "null", "none", "500"])
def test_an_answer_without_usable_log_probabilities_is_asked_for_without_them(store: LabelStore, spoiled: str) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            if not request.top_logprobs:
                return body("good")
            if spoiled == "500":
                raise Transient("500: Out of range float values", status=500)
            value = {"nan": float("nan"), "null": None}.get(spoiled)
            reply = json.loads(body("good"))
            reply["choices"][0]["logprobs"] = None
            if spoiled != "none":
                reply["choices"][0]["logprobs"] = {"content": [{"token": "good", "logprob": value, "top_logprobs": []}]}
            return json.dumps(reply)

        server = ScriptedServer(script)
        llm = new_session(store, server).bound("s", 1, "fuzz")
        answer = await WithoutLogprobsAtNeed(llm).ask(ask(top_logprobs=5), say)
        assert (answer.value, answer.completion.logprobs) == ("good", ())
        assert [request.top_logprobs for request in server.sent] == [5, 5, 0]
        with pytest.raises(NoLogprobs) as caught:  # who must have them
            await llm.ask(ask(1, top_logprobs=5), say)
        assert caught.value.failure.kind is FailureKind.SERVER_ERROR
        if spoiled != "500":
            later = ScriptedServer(after(0, "never asked"))
            llm = new_session(store, later).bound("s", 1, "fuzz")
            assert await WithoutLogprobsAtNeed(llm).ask(ask(top_logprobs=5), say) == answer
            assert later.sent == []

    run(main)


def test_garbage_that_is_over_at_the_second_try_is_no_failure(store: LabelStore) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            return '{"choices": [], "usage": {"prompt_tokens": 90, "completion_tokens": 1}}' if number == 0 else body()

        session = new_session(store, ScriptedServer(script))
        assert (await session.complete(ask(), PLACE)).text == "yes"
        await session.close()

    run(main)
    assert books_balance(store) == (91 + 110, 0)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (body("", finish="length"), "truncated"),
        (body("", finish="content_filter"), "refused"),
        (body("", refusal="I cannot"), "refused"),
    ],
)
def test_a_reply_that_is_no_answer_is_typed_and_not_repaired(store: LabelStore, reply: str, kind: str) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            return reply

        server = ScriptedServer(script)
        llm = new_session(store, server).bound("s", 1, "fuzz")
        with pytest.raises(AskFailed) as caught:
            await llm.ask(ask(), say)
        assert caught.value.failure.kind == kind
        assert caught.value.usage.input_tokens == 100
        assert len(server.sent) == 1

    run(main)


def test_a_bad_answer_is_repaired_twice_with_what_is_wrong_and_then_fails(store: LabelStore) -> None:
    def read(completion: Completion) -> str:
        if completion.text != "good":
            raise BadAnswer(f"{completion.text!r:.20} is not good")
        return completion.text

    async def main() -> None:
        answers = ["bad", "x" * 9000, "good", "", "", ""]

        async def script(request: CompletionRequest, number: int) -> str:
            return body(answers[number])

        server = ScriptedServer(script)
        llm = new_session(store, server).bound("s", 1, "fuzz")
        answer = await llm.ask(ask(), read)
        assert (answer.value, answer.usage.input_tokens, answer.usage.cost_usd) == ("good", 300, pytest.approx(420e-6))
        turns = server.sent[2].messages
        assert turns[:2] == ask().messages
        assert [turn.role for turn in turns[2:]] == ["assistant", "user"] * 2
        assert "'bad' is not good" in turns[3].content
        assert len(turns[4].content) == 2000
        with pytest.raises(AskFailed) as caught:
            await llm.ask(ask(1), read)
        assert caught.value.failure.kind is FailureKind.UNPARSEABLE
        assert "is not good" in caught.value.failure.message
        assert caught.value.usage.output_tokens == 30
        assert len(server.sent) == 6
        # all of it again from the store
        again = new_session(store, ScriptedServer(after(0, "never asked")), owner="again").bound("s", 1, "fuzz")
        assert await again.ask(ask(), read) == answer

    run(main)


def test_a_plain_text_is_not_repaired_and_its_length_is_no_failure_where_its_tokens_are_scored(
    store: LabelStore,
) -> None:
    def read(completion: Completion) -> int:
        if not completion.prompt_logprobs:
            raise BadAnswer("no log-probabilities")
        return len(completion.prompt_logprobs)

    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            choice: dict[str, Any] = {"index": 0, "finish_reason": "length", "text": "x"}
            if request.prompt_logprobs:
                choice["prompt_logprobs"] = [None, {"5": {"logprob": -1.0, "rank": 1, "decoded_token": "b"}}]
            usage = {"prompt_tokens": 2, "completion_tokens": 1}
            return json.dumps({"model": "m", "choices": [choice], "usage": usage})

        server = ScriptedServer(script)
        llm = new_session(store, server).bound("s", 1, "simulation")
        assert (await llm.ask(CompletionRequest(text="ab", max_tokens=1, prompt_logprobs=1), read)).value == 2
        with pytest.raises(AskFailed) as caught:
            await llm.ask(CompletionRequest(text="ab", max_tokens=1), read)
        assert caught.value.failure.kind is FailureKind.TRUNCATED
        assert len(server.sent) == 2

    run(main)


def test_a_server_that_cannot_be_bound_gets_the_schema_in_words(store: LabelStore) -> None:
    schema = {"type": "object", "properties": {"label": {"type": "string"}}}

    async def main() -> None:
        server = ScriptedServer(after(0, '{"label": "x"}'))
        for capabilities in (frozenset({Capability.JSON_SCHEMA}), frozenset[Capability]()):
            session = new_session(store, server, capabilities=capabilities)
            await session.bound("s", 1, "max_activating").ask(ask(json_schema=schema), say)
            await session.close()
        assert server.bound == [True, False]
        assert server.sent[0].messages == ask().messages
        assert '{"properties":{"label":{"type":"string"}},"type":"object"}' in server.sent[1].messages[-1].content
        llm = new_session(store, server, capabilities=frozenset()).bound("s", 1, "detection")
        for request in (ask(top_logprobs=5), CompletionRequest(text="x", prompt_logprobs=1)):
            with pytest.raises(AskFailed, match="logprobs") as caught:
                await llm.ask(request, say)
            assert caught.value.failure.kind is FailureKind.MISSING_CAPABILITY
        assert len(server.sent) == 2

    run(main)


# row 19: no request will do


def test_a_wrong_key_costs_one_call_however_many_wait(store: LabelStore) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            await asyncio.sleep(0.5)
            raise Denied("401: the key in MY_KEY was not accepted")

        server = ScriptedServer(script)
        session = new_session(store, server)
        found = await gathered(*(session.complete(ask(n), PLACE) for n in range(64)))
        assert all(isinstance(error, EndpointError) for error in found)
        assert "the key in MY_KEY was not accepted; see to its key" in str(found[63])
        with pytest.raises(EndpointError):
            await session.complete(ask(99), PLACE)
        assert len(server.sent) == 1
        await session.close()

    run(main)
    assert books_balance(store) == (0, 0)


def test_a_key_that_is_withdrawn_ends_the_calls_under_way_and_no_more_are_made(store: LabelStore) -> None:
    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            await asyncio.sleep(0.1 if number != 30 else 0.05)
            if number >= 30:
                raise Denied("403: insufficient_quota")
            return body()

        server = ScriptedServer(script)
        session = new_session(store, server, endpoint=FakeEndpoint(max_concurrency=8))
        found = await gathered(*(session.complete(ask(n), PLACE) for n in range(500)))
        assert sum(isinstance(answer, Completion) for answer in found) == 30
        assert len(server.sent) <= 30 + 8
        await session.close()

    run(main)
    assert books_balance(store) == (30 * 110, 0)


# row 20: the budget


def test_with_64_calls_at_once_the_budget_is_never_passed_and_the_run_goes_on_when_it_is_raised(
    store: LabelStore,
) -> None:
    cap = 20_000

    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            await asyncio.sleep(0.1)
            spent, reserved = books_balance(store)
            assert spent + reserved <= cap
            return body(prompt=60 + number % 7, answer=50)

        server = ScriptedServer(script)
        session = new_session(store, server, budget=Budget(tokens=cap))
        found = await gathered(*(session.complete(ask(n), PLACE) for n in range(400)))
        refused = [error for error in found if isinstance(error, BudgetError)]
        answered = sum(isinstance(answer, Completion) for answer in found)
        assert answered == len(server.sent) == 400 - len(refused)
        assert "raise budget.tokens and run the same command again" in str(refused[0])
        await session.close()
        spent, reserved = books_balance(store)
        assert reserved == 0
        assert cap - MOST - 2 < spent <= cap, "all of it is used, but for less than one more call"

        later = ScriptedServer(script_after_raise)
        session = new_session(store, later, budget=Budget(tokens=100_000), owner="again")
        rest = await asyncio.gather(*(session.complete(ask(n), PLACE) for n in range(400)))
        assert len(rest) == 400
        assert len(later.sent) == 400 - answered, "nothing is asked twice"
        await session.close()

    async def script_after_raise(request: CompletionRequest, number: int) -> str:
        return body()

    run(main)
    books_balance(store)


def test_a_budget_in_dollars_is_kept_to_the_nano_dollar(store: LabelStore) -> None:
    async def main() -> None:
        endpoint = FakeEndpoint(usd_per_million_input_tokens=0.1, usd_per_million_output_tokens=0.3)
        server = ScriptedServer(after(0.01, prompt=97, answer=31))
        session = new_session(store, server, endpoint=endpoint, budget=Budget(usd=0.002))
        found = await gathered(*(session.complete(ask(n), PLACE) for n in range(300)))
        assert "raise budget.usd" in str(next(a for a in found if isinstance(a, BudgetError)))
        with store.reading() as connection:
            spent = account(connection, "r-1", lock=False).spent
        assert spent.nano_usd == len(server.sent) * (9700 + 9300)
        most = most_amount(most_usage(ask(299), endpoint), endpoint)
        assert 2_000_000 - most.nano_usd < spent.nano_usd <= 2_000_000
        assert spend(store, "r-1").cost_usd == pytest.approx(len(server.sent) * 19e-6)
        await session.close()

    run(main)
    books_balance(store)


def test_thoughts_are_reserved_with_the_answer(store: LabelStore) -> None:
    async def main() -> None:
        thinker = FakeEndpoint(thinking_tokens=5000)
        assert most_usage(ask(), thinker).output_tokens == 5050
        assert most_usage(CompletionRequest(text="a", max_tokens=0, prompt_logprobs=1), thinker).output_tokens == 1
        server = ScriptedServer(after(0.01))
        session = new_session(store, server, endpoint=thinker, budget=Budget(tokens=5000))
        with pytest.raises(BudgetError):
            await session.complete(ask(), PLACE)
        assert server.sent == []
        await session.close()

    run(main)


def test_a_budget_in_dollars_without_a_price_is_refused_before_anything_is_sent(store: LabelStore) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match=r"price of the endpoint 'default' is not known.*budget\.tokens"):
            new_session(
                store,
                ScriptedServer(after(0)),
                endpoint=FakeEndpoint(usd_per_million_output_tokens=None),
                budget=Budget(usd=1.0),
            )
        free = FakeEndpoint(usd_per_million_input_tokens=0.0, usd_per_million_output_tokens=0.0)
        session = new_session(store, ScriptedServer(after(0)), endpoint=free, budget=Budget(usd=0.01))
        assert (await session.complete(ask(), PLACE)).usage.cost_usd == 0.0
        await session.close()
        unpriced = FakeEndpoint(usd_per_million_output_tokens=None)
        session = new_session(store, ScriptedServer(after(0)), endpoint=unpriced, scope="x")
        assert (await session.complete(ask(), PLACE)).usage.cost_usd is None
        await session.close()

    run(main)
    assert spend(store, "r-1").cost_usd is None


@pytest.mark.parametrize("concurrency", [1, 64])
def test_a_server_that_bills_more_than_the_limits_is_reserved_more_for(store: LabelStore, concurrency: int) -> None:
    cap = 20_000

    async def main() -> None:
        async def script(request: CompletionRequest, number: int) -> str:
            await asyncio.sleep(0.1)
            return body(answer=1900)  # of 50

        server = ScriptedServer(script)
        session = new_session(
            store, server, budget=Budget(tokens=cap), endpoint=FakeEndpoint(max_concurrency=concurrency)
        )
        found = await gathered(*(session.complete(ask(n), PLACE) for n in range(100)))
        refused = [str(error) for error in found if isinstance(error, BudgetError)]
        assert len(server.sent) == 100 - len(refused) == 9
        assert "'default' 1,850 tokens" in refused[0]
        await session.close()

    run(main)
    assert books_balance(store) == (18_000, 0)

    async def later() -> None:  # another process knows it from the first reply that is stored
        server = ScriptedServer(after(0, answer=1900))
        session = new_session(store, server, budget=Budget(tokens=cap - 1000), owner="again")
        await session.complete(ask(0), PLACE)
        with pytest.raises(BudgetError):
            await session.complete(ask(99), PLACE)
        assert server.sent == []
        await session.close()

    run(later)


def test_a_call_too_big_for_the_whole_budget_is_refused_at_once(store: LabelStore) -> None:
    async def main() -> None:
        server = ScriptedServer(after(0))
        session = new_session(store, server, budget=Budget(tokens=MOST - 1))
        with pytest.raises(
            BudgetError, match=f"budget of {MOST - 1} tokens is used up: 0 are spent and the next call may take {MOST};"
        ):
            await session.complete(ask(), PLACE)
        assert server.sent == []
        await session.close()

    run(main)


# kills


def test_what_a_cancelled_call_had_reserved_is_lost_or_given_back(store: LabelStore) -> None:
    async def main() -> None:
        session = new_session(store, ScriptedServer(after(100.0)), endpoint=FakeEndpoint(max_concurrency=1))
        tasks = [asyncio.ensure_future(session.complete(ask(n), PLACE)) for n in range(5)]
        await asyncio.sleep(1.0)
        assert books_balance(store) == (0, 5 * MOST)
        for task in tasks:
            task.cancel()
        await gathered(*tasks)
        await session.close()

    run(main)
    assert outcomes(store) == {"lost": 1}, "one was sent, four only waited"
    assert books_balance(store) == (MOST, 0)


def test_a_reservation_that_is_granted_to_nobody_is_given_back(store: LabelStore) -> None:
    async def main() -> None:
        server = ScriptedServer(after(0))
        session = new_session(store, server)
        tasks = [asyncio.ensure_future(session.complete(ask(n), PLACE)) for n in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the commit that reserves is under way
        for task in tasks:
            task.cancel()
        await gathered(*tasks)
        assert server.sent == []
        assert (await session.complete(ask(), PLACE)).text == "yes"
        await session.close()

    run(main)
    assert books_balance(store) == (110, 0)


CHILD = """
import asyncio, sys
from pathlib import Path
from tests.autointerp.scripted_server import *

async def main():
    async def script(request, number):
        with open(sys.argv[2], "a") as calls:
            calls.write(request.messages[-1].content + "\\n")
        await asyncio.sleep(0.1)
        return body()
    store = open_store(sqlite_url(Path(sys.argv[1])))
    session = new_session(store, ScriptedServer(script), endpoint=FakeEndpoint(max_concurrency=4), owner=sys.argv[3], budget=Budget(tokens=10**6))
    found = await asyncio.gather(*(session.complete(ask(n), PLACE) for n in range(30)))
    await session.close()
    print(sum(c.text == "yes" for c in found))

asyncio.run(main())
"""


@pytest.mark.parametrize("fault", ["llm:after_reply:9", "llm:after_save:9"])
def test_a_kill_costs_the_calls_under_way_and_nothing_else(tmp_path: Path, store: LabelStore, fault: str) -> None:
    calls = tmp_path / "calls"

    def child(owner: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / "a.db"), str(calls), owner],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    died = child("first", AUTOINTERP_FAULT=fault)
    assert died.returncode == -signal.SIGKILL, died.stderr
    spent, reserved = books_balance(store)
    assert reserved > 0, "what the dead process had reserved still counts"
    kept = outcomes(store)["reply"]
    assert spent == kept * 110
    asked = len(calls.read_text().splitlines())

    lost = settle_abandoned(store, "r-1", lambda owner: owner == "first")
    assert (lost.tokens, books_balance(store)) == (reserved, (spent + reserved, 0))
    assert settle_abandoned(store, "r-1", lambda owner: owner == "first").tokens == 0

    done = child("second")
    assert done.stdout.strip() == "30", done.stderr
    again = calls.read_text().splitlines()[asked:]
    assert len(again) == 30 - kept, "only what has no reply is asked again"
    assert len(calls.read_text().splitlines()) <= 30 + 2 * 4, "the four under way, and at most as many whose commit was"
    assert outcomes(store) == {"reply": 30, "lost": 1}
    assert books_balance(store) == (30 * 110 + reserved, 0)


def test_replies_do_not_pile_up_before_a_database_that_does_not_answer(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill costs what is begun and not stored; the limit of calls at the server bounds that too."""
    server = ScriptedServer(after(0.1))
    most = 3

    async def main() -> None:
        session = new_session(store, server, endpoint=FakeEndpoint(max_concurrency=most))
        close, answers = CallBook.close, asyncio.Event()

        async def held_up(self: CallBook, *given: Any) -> Any:
            await answers.wait()
            return await close(self, *given)

        monkeypatch.setattr(CallBook, "close", held_up)
        waiting = [asyncio.create_task(session.complete(ask(number), PLACE)) for number in range(30)]
        await asyncio.sleep(60)
        assert len(server.sent) == MOST_UNSAVED * most
        answers.set()
        assert len(await gathered(*waiting)) == len(server.sent) == 30
        await session.close()

    run(main)
    assert outcomes(store) == {"reply": 30}


# the ledger


def test_the_ledger_adds_up_by_purpose_and_by_latent(store: LabelStore) -> None:
    async def main() -> None:
        session = new_session(store, ScriptedServer(after(0.5)))
        places = [
            CallPlace("s", 1, "detection"),
            CallPlace("s", 1, "fuzz"),
            CallPlace("s", 2, "fuzz"),
            CallPlace("s", None, "x"),
        ]
        await asyncio.gather(*(session.complete(ask(n), place) for n, place in enumerate(places)))
        await session.close()

    run(main)
    by_purpose = spend_by_purpose(store, "r-1")
    assert {purpose: part.calls for (purpose, _), part in by_purpose.items()} == {"detection": 1, "fuzz": 2, "x": 1}
    by_latent = spend_by_latent(store, "r-1", "s", range(5))
    assert {latent: part.input_tokens for latent, part in by_latent.items()} == {1: 200, 2: 100}
    total = spend(store, "r-1")
    assert (total.calls, total.lost, total.output_tokens) == (4, 0, 40)
    assert total.cost_usd == pytest.approx(4 * 140e-6)
    assert total.seconds == pytest.approx(2.0)
    assert books_balance(store) == (440, 0)
    assert spend(store, "unknown").calls == 0


def test_a_server_that_counts_more_than_was_thought_possible_is_entered_as_it_says(store: LabelStore) -> None:
    async def main() -> None:
        session = new_session(store, ScriptedServer(after(0, prompt=9000)))
        await session.complete(ask(), PLACE)
        await session.close()

    run(main)
    assert books_balance(store) == (9010, 0)
