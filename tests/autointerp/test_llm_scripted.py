"""The endpoint without a server, and the LLMs without an endpoint: deterministic, recorded, and as strict as the real ones."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from autointerp.components import parse_component
from autointerp.failure import Failure, FailureKind
from autointerp.llm.answers import binary_probabilities, read_json
from autointerp.llm.asking import AskFailed, BadAnswer
from autointerp.llm.call_errors import InvalidReply, Rejected, Transient
from autointerp.llm.endpoints.scripted import ScriptedClient, ScriptedEndpoint
from autointerp.llm.protocol import Capability, Completion, CompletionRequest, Message, Usage
from autointerp.llm.scripted import ScriptedLLMs
from autointerp.llm.validation import read_reply
from sae_core.errors import ConfigError


def chat(text: str, **parameters: Any) -> CompletionRequest:
    return CompletionRequest(messages=(Message(role="user", content=text),), **parameters)


def reply(client: Any, request: CompletionRequest) -> Completion:
    return read_reply(asyncio.run(client.send(request, 1.0, bound=False)), request)


def endpoint(**fields: Any) -> ScriptedEndpoint:
    found = parse_component("endpoints", {"kind": "scripted", **fields})
    assert isinstance(found, ScriptedEndpoint)
    return found


def test_rules_come_first_and_in_order() -> None:
    rules = [{"contains": "label", "reply": "digits"}, {"contains": "la", "reply": "other"}]
    client = endpoint(rules=rules, replies=["else"]).open()
    assert [reply(client, chat(text)).text for text in ("a label", "la", "x")] == ["digits", "other", "else"]
    with pytest.raises(Rejected, match="no rule"):
        reply(endpoint(rules=rules).open(), chat("x"))
    with pytest.raises(ConfigError, match="give it rules"):
        endpoint()


def test_the_same_request_gets_the_same_reply_in_any_order() -> None:
    given = endpoint(replies=["a", "b", "c"])
    requests = [chat(f"number {n}") for n in range(20)]
    client, other = given.open(), given.open()
    forwards = [reply(client, request).text for request in requests]
    assert forwards == [reply(other, request).text for request in reversed(requests)][::-1]
    assert set(forwards) == {"a", "b", "c"}
    assert client.requests == requests


def test_log_probabilities_where_it_can_and_is_asked() -> None:
    able = endpoint(replies=['{"matches": [1, 0]}'], capabilities=["logprobs", "prompt_logprobs"])
    assert able.known_capabilities() == {Capability.LOGPROBS, Capability.PROMPT_LOGPROBS}
    found = reply(able.open(), chat("x", top_logprobs=2))
    assert binary_probabilities(found, "matches") == pytest.approx([0.9, 0.1])
    scored = reply(able.open(), CompletionRequest(text="it is 1", max_tokens=0, prompt_logprobs=2))
    assert [token and token.token for token in scored.prompt_logprobs] == [None, " is", " 1"]
    assert scored.prompt_logprobs[2] is not None
    assert math.exp(scored.prompt_logprobs[2].top[" 0"]) == pytest.approx(0.1)
    with pytest.raises(InvalidReply, match="got none"):
        reply(endpoint(replies=["x"]).open(), chat("x", top_logprobs=2))


def test_a_client_of_a_function() -> None:
    answers: list[Any] = ["text", {"choices": []}, Transient("HTTP 500")]
    client = ScriptedClient(lambda request: answers[len(client.requests) - 1])
    assert reply(client, chat("x")).text == "text"
    with pytest.raises(InvalidReply):
        reply(client, chat("x"))
    with pytest.raises(Transient):
        reply(client, chat("x"))
    assert len(client.requests) == 3


SCHEMA = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}


def ask(llms: ScriptedLLMs, request: CompletionRequest) -> Any:
    return asyncio.run(llms.of("", "test").ask(request, lambda c: read_json(c, SCHEMA)["label"]))


def test_a_bad_answer_is_repaired_with_its_reason() -> None:
    answers = ["digits", '{"name": "digits"}', '{"label": "digits"}']
    llms = ScriptedLLMs(lambda request: answers[len(llms.asked) - 1])
    found = ask(llms, chat("What is it?"))
    assert found.value == "digits"
    first, second, third = llms.asked
    assert [m.role for m in third.messages] == ["user", "assistant", "user", "assistant", "user"]
    assert second.messages[1].content == "digits"
    assert "not valid JSON" in second.messages[2].content
    assert 'lacks the key "label"' in third.messages[4].content
    assert found.usage.input_tokens > found.completion.usage.input_tokens > 0
    assert first.messages == third.messages[:1]
    assert llms.purposes == [("", "test")]


@pytest.mark.parametrize(
    ("answer", "kind", "calls"),
    [
        ("nonsense", FailureKind.UNPARSEABLE, 3),
        (Completion(text="{", finish_reason="length", model="m"), FailureKind.TRUNCATED, 1),
        (Completion(text="no", finish_reason="refusal", model="m"), FailureKind.REFUSED, 1),
    ],
)
def test_no_good_answer_is_a_typed_failure(answer: str | Completion, kind: FailureKind, calls: int) -> None:
    llms = ScriptedLLMs(lambda request: answer)
    with pytest.raises(AskFailed) as caught:
        ask(llms, chat("x"))
    assert caught.value.failure.kind is kind
    assert len(llms.asked) == calls


def test_a_plain_text_is_not_repaired_and_failures_of_the_script_pass() -> None:
    def never(_: Completion) -> None:
        raise BadAnswer("not that")

    llms = ScriptedLLMs(lambda request: "x")
    with pytest.raises(AskFailed):
        asyncio.run(llms.of("judge", "p").ask(CompletionRequest(text="a"), never))
    assert len(llms.asked) == 1
    assert llms.of("judge", "p").name == "judge"

    def fails(_: CompletionRequest) -> str:
        raise AskFailed(Failure(kind=FailureKind.TIMEOUT, message="too late"), Usage(input_tokens=5, cost_usd=0.0))

    with pytest.raises(AskFailed) as caught:
        ask(ScriptedLLMs(fails), chat("x"))
    assert caught.value.failure.kind is FailureKind.TIMEOUT
    assert caught.value.usage.input_tokens == 5
