"""Every raw reply becomes a completion or an InvalidReply: replies as servers write them, a table of garbage, and fuzzing."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.llm.call_errors import (
    BadLogprobs,
    CallError,
    Denied,
    Forbidden,
    InvalidReply,
    NoReply,
    RateLimited,
    Refused,
    Rejected,
    Transient,
)
from autointerp.llm.http_failures import false_success
from autointerp.llm.protocol import Completion, CompletionRequest, Message, TokenLogprob, Usage
from autointerp.llm.validation import read_reply

CHAT = CompletionRequest(messages=(Message(role="user", content="Say hello."),))
LOGPROBS = CHAT.model_copy(update={"top_logprobs": 2})
SCORED = CompletionRequest(text="a b c", max_tokens=0, prompt_logprobs=2)
CONTINUED = CompletionRequest(text="a b c", max_tokens=2, prompt_logprobs=2, top_logprobs=2)
REQUESTS = [CHAT, LOGPROBS, SCORED, CONTINUED]

REPLY: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "some-model-2026",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello.", "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 11,
        "completion_tokens": 2,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
    },
    "system_fingerprint": "fp",
    "service_tier": "default",
}
CONTENT = [
    {
        "token": "Hello",
        "logprob": -0.25,
        "bytes": [72],
        "top_logprobs": [{"token": "Hello", "logprob": -0.25}, {"token": "Hi", "logprob": -2.0}],
    },
    {
        "token": ".",
        "logprob": -0.5,
        "top_logprobs": [{"token": ".", "logprob": -0.5}, {"token": "!", "logprob": -1}],
    },
]
# as vLLM answers {"prompt": "a b c", "echo": true, "logprobs": 2, "max_tokens": 2}
ECHO: dict[str, Any] = {
    "model": "tiny",
    "choices": [
        {
            "index": 0,
            "text": "a b c d!",
            "logprobs": {
                "text_offset": [0, 1, 3, 5, 7],
                "token_logprobs": [None, -1.0, -2.0, -3.0, -4.0],
                "tokens": ["a", " b", " c", " d", "!"],
                "top_logprobs": [None, {" b": -1.0, " x": -0.5}, {" c": -2.0}, {" d": -3.0}, {"!": -4.0, "?": -1.5}],
            },
            "finish_reason": "length",
            "prompt_logprobs": None,
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": None},
}
VLLM: dict[str, Any] = {
    "model": "tiny",
    "choices": [
        {
            "index": 0,
            "text": " d",
            "logprobs": None,
            "finish_reason": "length",
            "prompt_logprobs": [
                None,
                {
                    "17": {"logprob": -1.0, "rank": 5, "decoded_token": " b"},
                    "4": {"logprob": -0.5, "rank": 1, "decoded_token": " x"},
                },
                {
                    "9": {"logprob": -0.25, "rank": 1, "decoded_token": " c"},
                    "2": {"logprob": -math.inf, "rank": 2, "decoded_token": " y"},
                },
            ],
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}


def changed(base: dict[str, Any], path: str, value: Any) -> str:
    """The reply as JSON with another value at a path such as ``choices.0.text``; "delete" takes it out."""
    reply = copy.deepcopy(base)
    *parents, last = path.split(".")
    place: Any = reply
    for part in parents:
        place = place[int(part) if isinstance(place, list) else part]
    at: Any = int(last) if isinstance(place, list) else last
    if value == "delete":
        del place[at]
    else:
        place[at] = value
    return json.dumps(reply)


def with_logprobs(content: Any = CONTENT) -> dict[str, Any]:
    reply = copy.deepcopy(REPLY)
    reply["choices"][0]["logprobs"] = {"content": copy.deepcopy(content), "refusal": None}
    return reply


def test_a_chat_reply() -> None:
    assert read_reply(json.dumps(REPLY), CHAT) == Completion(
        text="Hello.",
        finish_reason="stop",
        model="some-model-2026",
        usage=Usage(input_tokens=11, cached_tokens=8, output_tokens=2),
    )


def test_log_probabilities_of_a_chat_reply() -> None:
    assert read_reply(json.dumps(with_logprobs()), LOGPROBS).logprobs == (
        TokenLogprob(token="Hello", logprob=-0.25, top={"Hello": -0.25, "Hi": -2.0}),
        TokenLogprob(token=".", logprob=-0.5, top={".": -0.5, "!": -1.0}),
    )


def test_log_probabilities_that_were_not_asked_for_are_not_read() -> None:
    assert read_reply(json.dumps(with_logprobs("nonsense")), CHAT).logprobs == ()


def test_an_echoed_prompt_is_parted_from_the_answer() -> None:
    found = read_reply(json.dumps(ECHO), CONTINUED)
    assert found.text == " d!"
    assert found.finish_reason == "length"
    assert found.prompt_logprobs == (
        None,
        TokenLogprob(token=" b", logprob=-1.0, top={" b": -1.0, " x": -0.5}),
        TokenLogprob(token=" c", logprob=-2.0, top={" c": -2.0}),
    )
    assert [token.token for token in found.logprobs] == [" d", "!"]
    assert found.logprobs[1].top == {"!": -4.0, "?": -1.5}


def test_an_echo_without_usage_is_parted_by_the_offsets() -> None:
    found = read_reply(changed(ECHO, "usage", None), CONTINUED)
    assert len(found.prompt_logprobs) == 3
    assert [token.token for token in found.logprobs] == [" d", "!"]


def test_where_no_answer_is_asked_for_nothing_is_cut_off() -> None:
    found = read_reply(json.dumps(ECHO), SCORED)
    assert (found.text, found.finish_reason, found.logprobs) == ("", "stop", ())
    assert len(found.prompt_logprobs) == 3


def test_vllms_own_prompt_log_probabilities() -> None:
    found = read_reply(json.dumps(VLLM), SCORED)
    assert found.text == ""
    assert found.prompt_logprobs == (
        None,
        TokenLogprob(token=" b", logprob=-1.0, top={" b": -1.0, " x": -0.5}),
        # what cannot come at all is left out of the alternatives
        TokenLogprob(token=" c", logprob=-0.25, top={" c": -0.25}),
    )


def test_token_ids_tell_vllms_own_token_whatever_the_order() -> None:
    reply = copy.deepcopy(VLLM)
    entries = reply["choices"][0]["prompt_logprobs"]
    reply["choices"][0]["prompt_logprobs"] = [None, dict(reversed(entries[1].items())), entries[2]]
    reply["choices"][0]["prompt_token_ids"] = [3, 17, 9]
    found = read_reply(json.dumps(reply), SCORED)
    assert [token and token.token for token in found.prompt_logprobs] == [None, " b", " c"]


@pytest.mark.parametrize(
    ("path", "value", "text", "finish"),
    [
        ("choices.0.finish_reason", "length", "Hello.", "length"),
        ("choices.0.message.refusal", "I cannot help with that.", "I cannot help with that.", "refusal"),
        ("choices.0.finish_reason", "content_filter", "Hello.", "refusal"),
        ("choices.0.message", {"role": "assistant", "content": None}, None, None),
        ("choices.0.message.content", "", "", "stop"),
        ("choices.0.finish_reason", "eos_token", "Hello.", "stop"),
        ("choices.0.message.content", "a\x00b\ud800c", "a\u2400b\ufffdc", "stop"),
        ("choices.0.message.content", "\U0001f600", "\U0001f600", "stop"),
        ("anything", [{"else": 1}], "Hello.", "stop"),
        ("choices.0.message.tool_calls", [], "Hello.", "stop"),
    ],
)
def test_ends_and_oddities(path: str, value: Any, text: str | None, finish: str | None) -> None:
    if text is None:
        with pytest.raises(InvalidReply, match="content is a JSON null"):
            read_reply(changed(REPLY, path, value), CHAT)
        return
    found = read_reply(changed(REPLY, path, value), CHAT)
    assert (found.text, found.finish_reason) == (text, finish)


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_no_content_where_nothing_could_be_written(reason: str) -> None:
    reply = json.loads(changed(REPLY, "choices.0.message.content", None))
    reply["choices"][0]["finish_reason"] = reason
    found = read_reply(json.dumps(reply), LOGPROBS)
    assert found.text == ""
    assert found.finish_reason == {"length": "length", "content_filter": "refusal"}[reason]


def test_usage_that_is_left_out_is_a_token_for_each_three_bytes() -> None:
    # "Say hello." has 10 bytes, "Hello." 6
    for value in (None, {}, {"prompt_tokens": None}, "delete"):
        assert read_reply(changed(REPLY, "usage", value), CHAT).usage == Usage(input_tokens=4, output_tokens=2)
    assert read_reply(changed(REPLY, "usage.completion_tokens", "delete"), CHAT).usage == Usage(
        input_tokens=11, cached_tokens=8, output_tokens=2
    )


@pytest.mark.parametrize(
    ("path", "value", "usage"),
    [
        ("usage", [1], (4, 0, 2)),
        ("usage", "many", (4, 0, 2)),
        ("usage.prompt_tokens", -1, (4, 0, 2)),
        ("usage.prompt_tokens", 10**12, (4, 0, 2)),
        ("usage.completion_tokens", -3, (11, 8, 2)),
        ("usage.completion_tokens", "12", (11, 8, 2)),
        ("usage.completion_tokens", True, (11, 8, 2)),
        ("usage.completion_tokens", math.nan, (11, 8, 2)),
        ("usage.prompt_tokens_details.cached_tokens", 12, (11, 0, 2)),
        ("usage.prompt_tokens_details.cached_tokens", -12, (11, 0, 2)),
        ("usage.prompt_tokens_details", "all", (11, 0, 2)),
    ],
)
def test_usage_that_cannot_be_is_estimated_and_the_answer_stands(
    path: str, value: Any, usage: tuple[int, int, int]
) -> None:
    found = read_reply(changed(REPLY, path, value), CHAT)
    assert found.text == "Hello."
    assert found.usage.output_tokens in (usage[2], 2)
    if path != "usage.prompt_tokens":
        assert (found.usage.input_tokens, found.usage.cached_tokens) == usage[:2]
    else:
        assert found.usage.input_tokens == 4


GARBAGE = [
    ("", "empty"),
    ("  \n", "empty"),
    ("{", "not JSON"),
    (json.dumps(REPLY)[:-20], "not JSON"),
    ("data: {}\n\n", "not JSON"),
    ("<html><body>502 Bad Gateway</body></html>", "HTML"),
    ("[" * 100_000, "nested too deep"),
    ('{"choices":' + "[" * 100_000, "nested too deep"),
    ("9" * 6000, "not JSON"),
    ("null", "JSON null"),
    ("[]", "JSON array"),
    ('"Hello."', "JSON string"),
    ("{}", "no choices"),
    ('{"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}}', "Rate limit"),
    ('{"error": "out of memory"}', "out of memory"),
    ('{"object": "error", "message": "The model is too long", "code": 400}', "too long"),
    ('{"detail": [{"loc": ["body"], "msg": "bad"}]}', "bad"),
    ('{"choices": [], "error": {"message": "upstream"}}', "upstream"),
    ('{"choices": []}', "no choices"),
    ('{"choices": null}', "no choices"),
    ('{"choices": {"0": 1}}', "not a list"),
    ('{"choices": ["Hello."]}', "not a list of at least one object"),
    ("x" * (2**20 + 1), "longer than 1048576 bytes"),
    (json.dumps("é" * 600_000, ensure_ascii=False), "longer than 1048576 bytes"),
    (changed(REPLY, "choices.0.message", "delete"), "no message"),
    (changed(REPLY, "choices.0.message", "Hello."), "no message"),
    (changed(REPLY, "choices.0.message.content", None), "JSON null"),
    (changed(REPLY, "choices.0.message.content", 7), "JSON number"),
    (changed(REPLY, "choices.0.message.content", [{"type": "text", "text": "Hello."}]), "JSON array"),
    (changed(REPLY, "choices.0.message.refusal", True), "refusal is a JSON truth value"),
    (changed(REPLY, "choices.0.message.tool_calls", [{"id": "1"}]), "calls tools"),
    (changed(REPLY, "choices.0.finish_reason", "tool_calls"), "calls tools"),
    (changed(REPLY, "choices.0.finish_reason", "abort"), "'abort'"),
    (changed(REPLY, "choices.0.finish_reason", None), "finish_reason is a JSON null"),
    (changed(REPLY, "choices.0.finish_reason", ["stop"]), "finish_reason is a JSON array"),
]


ERROR_OBJECTS: list[tuple[dict[str, Any], type[CallError]]] = [
    ({"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}, RateLimited),
    ({"message": "slow down", "code": 429}, RateLimited),
    ({"message": "Too many requests"}, RateLimited),
    ({"message": "You exceeded your current quota", "type": "insufficient_quota", "code": None}, Denied),
    ({"message": "Incorrect API key", "code": "invalid_api_key", "type": "invalid_request_error"}, Denied),
    ({"message": "no key", "type": "authentication_error"}, Denied),
    ({"message": "no such model", "code": "model_not_found"}, Denied),
    ({"message": "not yours", "code": 403}, Forbidden),
    ({"message": "not yours", "code": 403, "type": "content_filter"}, Refused),
    ({"message": "no", "code": "content_policy_violation", "type": "invalid_request_error"}, Refused),
    ({"message": "filtered", "code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}}, Refused),
    ({"message": "Your chosen model requires moderation and your input was flagged"}, Refused),
    ({"message": "maximum context length", "type": "invalid_request_error"}, Rejected),
    ({"message": "busy"}, Transient),
    ({"message": "overloaded", "code": 529}, Transient),
    ({"message": "late", "type": "timeout"}, Transient),
]


@pytest.mark.parametrize(("error", "kind"), ERROR_OBJECTS)
def test_an_error_object_with_the_status_of_a_success_means_what_its_status_would(
    error: dict[str, Any], kind: type[CallError]
) -> None:
    for reply in ({"error": error}, {"error": error, "choices": []}, {"object": "error", **error}):
        found = false_success(json.dumps(reply), key_name="K")
        assert type(found) is kind, (reply, found)
        assert str(error["message"]) in str(found) or "does not accept K" in str(found)


@pytest.mark.parametrize(
    ("body", "maybe_paid", "message"),
    [
        ("", True, "empty"),
        (" \n" * 2000, True, "empty"),
        ("<!DOCTYPE html><h1>Maintenance</h1>", False, "HTML"),
        (f"data: {json.dumps(REPLY)}\n\n", True, "event stream"),
        (": ping\n\ndata: {}", True, "event stream"),
        ("upstream connect error", True, "not JSON"),
        ("null", True, "JSON null"),
        ('["choices"]', True, "JSON array"),
        ("{}", True, "no choices"),
        ('{"choices": []}', True, "no choices"),
    ],
)
def test_what_is_no_reply_of_the_api_is_trouble_of_the_server(body: str, maybe_paid: bool, message: str) -> None:
    found = false_success(body, key_name="K")
    assert type(found) is NoReply
    assert message in str(found)
    assert found.maybe_paid is maybe_paid


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(REPLY),
        json.dumps(REPLY)[:-20],
        "{",
        "[" * 100_000,
        changed(REPLY, "choices.0.message", "delete"),
        '{"choices": ["Hello."]}',
        changed(REPLY, "error", {"message": "none"}),
    ],
)
def test_a_reply_of_the_api_is_left_to_validation(body: str) -> None:
    assert false_success(body, key_name="K") is None


def test_a_text_about_choices_is_no_choice() -> None:
    body = json.dumps({"error": {"message": '"choices": [{'}})
    assert type(false_success(body, key_name="K")) is Transient


@pytest.mark.parametrize(("body", "message"), GARBAGE)
def test_garbage_is_named(body: str, message: str) -> None:
    with pytest.raises(InvalidReply) as caught:
        read_reply(body, CHAT)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("choices.0.logprobs", None, "asked for log-probabilities and got none"),
        ("choices.0.logprobs", "delete", "asked for log-probabilities and got none"),
        ("choices.0.logprobs.content", None, "asked for log-probabilities and got none"),
        ("choices.0.logprobs.content", [], "asked for log-probabilities and got none"),
        ("choices.0.logprobs.content.0", None, "no object"),
        ("choices.0.logprobs.content.0.logprob", math.nan, "not finite"),
        ("choices.0.logprobs.content.0.logprob", -math.inf, "not finite"),
        ("choices.0.logprobs.content.0.logprob", None, "no number"),
        ("choices.0.logprobs.content.0.logprob", "delete", "no number"),
        ("choices.0.logprobs.content.0.logprob", "-1", "no number"),
        ("choices.0.logprobs.content.0.logprob", True, "no number"),
        ("choices.0.logprobs.content.0.logprob", 10**400, "not finite"),
        ("choices.0.logprobs.content.0.logprob", 0.7, "above 0"),
        ("choices.0.logprobs.content.0.token", None, "no text"),
        ("choices.0.logprobs.content.0.top_logprobs", {"a": 1}, "no list"),
        ("choices.0.logprobs.content.0.top_logprobs", [1], "no list of objects"),
        ("choices.0.logprobs.content.0.top_logprobs.1.logprob", math.nan, "not finite"),
        ("choices.0.logprobs.content.0.top_logprobs.1.logprob", None, "no number"),
    ],
)
def test_log_probabilities_that_cannot_be(path: str, value: Any, message: str) -> None:
    with pytest.raises(BadLogprobs) as caught:
        read_reply(changed(with_logprobs(), path, value), LOGPROBS)
    assert message in str(caught.value)


def test_an_alternative_that_cannot_come_is_dropped_and_rounding_is_forgiven() -> None:
    body = changed(with_logprobs(), "choices.0.logprobs.content.0.top_logprobs.1.logprob", -math.inf)
    assert read_reply(body, LOGPROBS).logprobs[0].top == {"Hello": -0.25}
    body = changed(with_logprobs(), "choices.0.logprobs.content.0.logprob", 1e-6)
    assert read_reply(body, LOGPROBS).logprobs[0].logprob == 0.0


@pytest.mark.parametrize(
    ("base", "path", "value", "message"),
    [
        (ECHO, "choices.0.text", None, "text is a JSON null"),
        # a server that does not know "echo" answers with its own words
        (ECHO, "choices.0.text", " d!", "got none"),
        (ECHO, "choices.0.logprobs", None, "got none"),
        (ECHO, "choices.0.logprobs.tokens", None, "got none"),
        (ECHO, "choices.0.logprobs.tokens", ["a"], "differ in length"),
        (ECHO, "choices.0.logprobs.token_logprobs.1", None, "lacks the log-probability"),
        (ECHO, "choices.0.logprobs.token_logprobs.2", math.nan, "not finite"),
        (ECHO, "choices.0.logprobs.top_logprobs.1", [1], "no objects"),
        (ECHO, "choices.0.logprobs.tokens.3", 5, "no text"),
        (ECHO, "usage.prompt_tokens", 40, "5 log-probabilities for 40 prompt tokens"),
        (VLLM, "choices.0.prompt_logprobs", "delete", "got none"),
        (VLLM, "choices.0.prompt_logprobs", [], "not a list of at least one"),
        (VLLM, "choices.0.prompt_logprobs", {}, "not a list"),
        (VLLM, "choices.0.prompt_logprobs.1", None, "lacks the log-probability"),
        (VLLM, "choices.0.prompt_logprobs.1", {}, "no object of alternatives"),
        (VLLM, "choices.0.prompt_logprobs.1", {"17": -1.0}, "no object of alternatives"),
        (VLLM, "choices.0.prompt_logprobs.1.17.logprob", -math.inf, "not finite"),
        (VLLM, "choices.0.prompt_logprobs.1.17.decoded_token", 3, "no text"),
    ],
)
def test_prompt_log_probabilities_that_cannot_be(base: dict[str, Any], path: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidReply) as caught:
        read_reply(changed(base, path, value), SCORED)
    assert message in str(caught.value)


def test_an_answer_to_a_plain_text_has_log_probabilities_too() -> None:
    request = CompletionRequest(text="a b c", max_tokens=2, top_logprobs=2)
    reply = json.loads(changed(ECHO, "choices.0.text", " b c d!"))
    reply["choices"][0]["logprobs"]["token_logprobs"][0] = -0.125
    reply["choices"][0]["logprobs"]["top_logprobs"][0] = {"a": -0.125}
    assert len(read_reply(json.dumps(reply), request).logprobs) == 5
    with pytest.raises(InvalidReply, match="lacks"):
        read_reply(json.dumps(ECHO), request)


def read_or_refused(body: str, request: CompletionRequest) -> None:
    try:
        found = read_reply(body, request)
    except InvalidReply:
        return
    # what came through can be stored: no half characters, no NUL, no NaN
    text = found.model_dump_json()
    assert "\\u0000" not in text
    assert Completion.model_validate_json(text) == found


@given(st.binary(max_size=300), st.sampled_from(REQUESTS))
def test_any_bytes(body: bytes, request: CompletionRequest) -> None:
    read_or_refused(body.decode("utf-8", "replace"), request)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(JSON, st.sampled_from(REQUESTS))
def test_any_json(value: Any, request: CompletionRequest) -> None:
    read_or_refused(json.dumps(value), request)


def places(value: Any, path: str = "") -> list[str]:
    """Paths of everything in a reply."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for name, item in inner:
        found += [f"{path}{name}", *places(item, f"{path}{name}.")]
    return found


@given(st.data(), JSON)
def test_good_replies_with_one_place_spoiled(data: st.DataObject, value: Any) -> None:
    base, requests = data.draw(
        st.sampled_from([(with_logprobs(), [CHAT, LOGPROBS]), (ECHO, [SCORED, CONTINUED]), (VLLM, [SCORED, CONTINUED])])
    )
    body = changed(base, data.draw(st.sampled_from(places(base))), value)
    read_or_refused(body, data.draw(st.sampled_from(requests)))
    read_or_refused(body[: data.draw(st.integers(0, len(body)))], requests[0])
