"""Capabilities found over HTTP at a server that lacks some of them in silence, refuses them, or falls over."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from autointerp.llm.call_errors import CallError, Denied, InvalidReply, RateLimited, Rejected, Transient
from autointerp.llm.endpoints.openai import OpenAIEndpoint
from autointerp.llm.probing import probe
from autointerp.llm.protocol import Capability, CompletionRequest, LLMClient
from autointerp.llm.server.faults import FaultRule
from autointerp.llm.server.running import RunningServer

EVERYTHING = frozenset(Capability)


def probed(client: LLMClient, deadline_s: float = 5.0) -> tuple[frozenset[Capability], list[float]]:
    """What is found, and the waits."""
    waits: list[float] = []

    async def sleep(wait_s: float) -> None:
        waits.append(wait_s)

    async def run() -> frozenset[Capability]:
        try:
            return await probe(client, deadline_s, sleep=sleep)
        finally:
            await client.close()

    return asyncio.run(run()), waits


def over_http(server: RunningServer, **fields: Any) -> frozenset[Capability]:
    return probed(OpenAIEndpoint(base_url=server.url, model="test", **fields).open())[0]


@pytest.mark.parametrize(
    "able",
    [EVERYTHING, frozenset(), *(frozenset({one}) for one in Capability), *(EVERYTHING - {one} for one in Capability)],
)
def test_what_a_server_ignores_in_silence_it_lacks(able: frozenset[Capability]) -> None:
    # an echo has log-probabilities only where the server has any at all; vLLM's own parameter stands alone
    api = "echo" if Capability.LOGPROBS in able else "vllm"
    with RunningServer(capabilities=able) as server:
        assert over_http(server, prompt_logprobs_api=api) == able
        # a handful of calls of a few tokens
        assert len(server.calls) <= 12
        assert sum(call.prompt_tokens + call.completion_tokens for call in server.calls) < 1000


def test_vllms_own_parameter_shows_prompt_log_probabilities_too() -> None:
    with RunningServer() as server:
        assert over_http(server, prompt_logprobs_api="vllm") == EVERYTHING
        assert any("prompt_logprobs" in call.request and "echo" not in call.request for call in server.calls)


def test_a_server_that_is_told_not_to_be_bound_lacks_the_schema() -> None:
    with RunningServer() as server:
        assert over_http(server, json_mode="none") == EVERYTHING - {Capability.JSON_SCHEMA}


def test_a_key_or_model_that_is_refused_is_no_lack() -> None:
    with RunningServer() as server, pytest.raises(Denied, match="does not exist"):
        probed(OpenAIEndpoint(base_url=server.url, model="no such model").open())
    for fault in ("unauthorized", "insufficient_quota"):
        with RunningServer(faults=[FaultRule(fault)]) as server:
            with pytest.raises(Denied):
                over_http(server)
            assert len(server.calls) == 1


def chat(text: str | None, finish: str = "stop", **choice: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}, "finish_reason": finish, **choice}]}


Answer = Callable[[CompletionRequest, Mapping[str, Any]], "dict[str, Any] | CallError"]


class Client:
    """A server in a function of the request and its further parameters."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls = 0

    async def send(self, request: CompletionRequest, deadline_s: float, *, bound: bool) -> str:
        return await self.send_with(request, deadline_s, {"bound": bound})

    async def send_with(
        self, request: CompletionRequest, deadline_s: float, extra: Mapping[str, Any], *, bound: bool = False
    ) -> str:
        self.calls += 1
        given = self.answer(request, extra)
        if isinstance(given, CallError):
            raise given
        return json.dumps(given)

    async def close(self) -> None:
        pass


def found(answer: Answer) -> frozenset[Capability]:
    return probed(Client(answer))[0]


@pytest.mark.parametrize(
    ("text", "finish", "bound"),
    [
        ('{"answer": 7}', "stop", True),
        ('{\n "answer":\t7 }\n', "stop", True),
        ('{ "answer":' + " " * 300, "length", True),
        ("{", "length", True),
        ("", "length", False),
        ("   ", "length", False),
        ("Hello! How can I", "length", False),
        ('{"answer": "hello"}', "stop", False),
        ('```json\n{"answer": 7}\n```', "stop", False),
        ('{"answer": 7} there', "stop", False),
        ("7", "stop", False),
    ],
)
def test_bound_to_a_schema_or_not(text: str, finish: str, bound: bool) -> None:
    def answer(request: CompletionRequest, extra: Mapping[str, Any]) -> dict[str, Any]:
        return chat(text, finish) if extra.get("bound") else chat("Hello.")

    assert found(answer) == (frozenset({Capability.JSON_SCHEMA}) if bound else frozenset())


@pytest.mark.parametrize(
    ("texts", "honoured"),
    [
        ({1: "abc", 2: "xyz", 3: "uvw"}, True),
        ({1: "abc", 2: "abc", 3: "uvw"}, True),
        ({1: "abc", 2: "abc", 3: "abc"}, False),
        (None, False),
    ],
)
def test_seeds(texts: dict[int, str] | None, honoured: bool) -> None:
    ever_other: Iterator[int] = itertools.count()

    def answer(request: CompletionRequest, extra: Mapping[str, Any]) -> dict[str, Any]:
        if request.seed is None:
            return chat("Hello.")
        return chat(str(next(ever_other)) if texts is None else texts[request.seed])

    assert found(answer) == (frozenset({Capability.SEED}) if honoured else frozenset())


def entry(token: str, logprob: float, **top: float) -> dict[str, Any]:
    listed = [{"token": name, "logprob": value} for name, value in top.items()]
    return {"token": token, "logprob": logprob, "top_logprobs": listed}


@pytest.mark.parametrize(
    ("content", "able"),
    [
        ([entry("Hello", -0.1, Hello=-0.1, Hi=-3.0)], True),
        ([entry("", 0.0), entry("Hello", -0.1, Hello=-0.1, Hi=-3.0), entry(".", -0.2)], True),
        ([entry("Hello", -0.1)], False),
        ([entry("Hello", -0.1, Hello=-0.1)], False),
        ([entry("Hello", 0.0, Hello=0.0, Hi=0.0)], False),
        ([], False),
        (None, False),
    ],
)
def test_log_probabilities(content: list[Any] | None, able: bool) -> None:
    def answer(request: CompletionRequest, extra: Mapping[str, Any]) -> dict[str, Any]:
        return chat("Hello.", logprobs={"content": content} if request.top_logprobs else None)

    assert found(answer) == (frozenset({Capability.LOGPROBS}) if able else frozenset())


@pytest.mark.parametrize(
    "failure",
    [
        Rejected("unknown parameter"),
        InvalidReply("the log-probabilities in the reply are not finite"),
        Transient("HTTP 500", status=500),
        Transient("no reply", timed_out=True, maybe_paid=True),
        Denied("HTTP 404: no such route"),
    ],
)
def test_a_server_that_fails_at_one_thing_lacks_it_and_is_well_otherwise(failure: CallError) -> None:
    def answer(request: CompletionRequest, extra: Mapping[str, Any]) -> dict[str, Any] | CallError:
        special = request.top_logprobs or request.text is not None or request.seed is not None or "n" in extra
        return failure if special else chat('{"answer": 7}')

    assert found(answer) == {Capability.JSON_SCHEMA}


@pytest.mark.parametrize("failure", [Transient("connection lost", maybe_paid=True), Denied("no credit left")])
def test_a_server_that_is_gone_after_a_probe_is_an_error(failure: CallError) -> None:
    gone = False

    def answer(request: CompletionRequest, extra: Mapping[str, Any]) -> dict[str, Any] | CallError:
        nonlocal gone
        gone = gone or request.top_logprobs > 0
        return failure if gone else chat("Hello.")

    with pytest.raises(type(failure)):
        found(answer)


def test_a_passing_trouble_is_no_lack() -> None:
    asked: set[str] = set()

    def answer(request: CompletionRequest, extra: Mapping[str, Any]) -> dict[str, Any] | CallError:
        name = request.model_dump_json() + repr(extra)
        if name not in asked:
            asked.add(name)
            return Transient("HTTP 503", status=503) if len(asked) % 2 else RateLimited("HTTP 429", 2.0)
        return chat('{"answer": 7}') if extra.get("bound") else chat("Hello.")

    capabilities, waits = probed(Client(answer))
    assert capabilities == {Capability.JSON_SCHEMA}
    assert 2.0 in waits


def test_a_limit_that_lasts_is_an_error_and_not_a_lack() -> None:
    client = Client(lambda request, extra: RateLimited("HTTP 429", 3600.0))
    with pytest.raises(RateLimited):
        probed(client)
    assert client.calls == 1


def test_nobody_there() -> None:
    client = Client(lambda request, extra: Transient("no connection"))
    with pytest.raises(Transient):
        probed(client)
    assert client.calls == 3


def test_an_error_object_or_a_page_in_the_place_of_a_reply_is_waited_out() -> None:
    faults = [FaultRule("error_object", at=(0,)), FaultRule("html", at=(1,))]
    with RunningServer(faults=faults) as server:
        assert over_http(server) == EVERYTHING
