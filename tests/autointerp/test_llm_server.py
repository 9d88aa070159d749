"""The test server: every fault really happens on the wire, and the ledger and the token counts say what was sent.

Replies are read by a raw socket and the standard library, so that no client mends or hides anything.
"""

from __future__ import annotations

import json
import math
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from autointerp.llm.protocol import Capability
from autointerp.llm.server import (
    FAULTS,
    Call,
    FaultRule,
    PlainAnswerer,
    Reply,
    RunningServer,
    TokenOdds,
    load_script,
    read_ledger,
    read_script,
    totals,
)
from autointerp.llm.server.counting import PrefixCache, TokenCounter, render
from sae_core.errors import ConfigError


class Raw(NamedTuple):
    """What came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes
    ended: str


def chat(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "test", "messages": [{"role": "user", "content": text}], **more}


def head_of(path: str, size: int, headers: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n{headers}\r\n".encode()


def exchange(
    server: RunningServer,
    request: dict[str, Any] | bytes,
    path: str = "/v1/chat/completions",
    timeout_s: float = 5.0,
    headers: str = "",
) -> Raw:
    """Sends one request over a connection of its own and reads until the body is whole, the end, a reset or the time."""
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    data = b""
    ended = "whole"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(timeout_s)
        connection.sendall(head_of(path, len(body), headers) + body)
        until = time.monotonic() + timeout_s
        while not is_whole(data):
            if time.monotonic() > until:
                ended = "time"
                break
            try:
                part = connection.recv(1 << 20)
            except TimeoutError:
                ended = "time"
                break
            except ConnectionResetError:
                ended = "reset"
                break
            if not part:
                ended = "end"
                break
            data += part
    top, _, rest = data.partition(b"\r\n\r\n")
    lines = top.decode("latin-1").split("\r\n")
    status = int(lines[0].split(" ")[1]) if lines[0].startswith("HTTP/") else 0
    named = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    return Raw(status, named, rest, ended)


def is_whole(data: bytes) -> bool:
    top, found, _ = data[:4096].partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", top.lower())
    return bool(found and length and len(data) - len(top) - 4 >= int(length.group(1)))


def faulty(fault: str, **fields: Any) -> RunningServer:
    return RunningServer(PlainAnswerer('{"label": "digits"}'), faults=[FaultRule(fault, **fields)])


def answer(raw: Raw) -> Any:
    return json.loads(raw.body)["choices"][0]["message"]["content"]


# --- good replies ------------------------------------------------------------------------------------------------


def test_a_chat_reply_has_the_apis_shape_and_counts_tokens_by_the_stated_rule() -> None:
    with RunningServer(PlainAnswerer("nine chars")) as server:
        raw = exchange(server, chat("ä" * 10))
    body = json.loads(raw.body)
    assert raw.status == 200
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "nine chars", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    # "<|user|>\n" 9 bytes, 20 of the text, 1, "<|assistant|>\n" 14: 44 bytes; the answer has 10
    assert body["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 3,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_one_connection_carries_many_requests() -> None:
    body = json.dumps(chat()).encode()
    with RunningServer() as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        for _ in range(3):
            connection.sendall(head_of("/v1/chat/completions", len(body)) + body)
            data = b""
            while not is_whole(data):
                data += connection.recv(65536)
            assert data.startswith(b"HTTP/1.1 200 OK")
        assert [call.outcome for call in server.calls] == ["ok"] * 3


def test_a_request_in_chunks_is_read() -> None:
    body = json.dumps(chat("in chunks")).encode()
    with RunningServer() as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in (body[:20], body[20:]):
            connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
        assert server.calls[0].prompt == "in chunks"


def test_models_and_what_the_api_refuses_by_its_own_rules() -> None:
    with RunningServer(models=("a", "b"), most_tokens=50, api_key="right") as server:
        asked = urllib.request.Request(server.url + "/models", headers={"Authorization": "Bearer right"})
        with urllib.request.urlopen(asked) as response:
            assert [model["id"] for model in json.load(response)["data"]] == ["a", "b"]
        key = "Authorization: Bearer right\r\n"
        good = {**chat(), "model": "a"}
        assert exchange(server, good, headers=key).status == 200
        assert exchange(server, good).status == 401
        assert exchange(server, good, headers="Authorization: Bearer wrong\r\n").status == 401
        assert exchange(server, {**good, "model": "c"}, headers=key).status == 404
        assert exchange(server, good, "/v1/nowhere", headers=key).status == 404
        assert exchange(server, b"{broken", headers=key).status == 400
        too_long = exchange(server, {**chat("x" * 400), "model": "a"}, headers=key)
        assert too_long.status == 400
        assert json.loads(too_long.body)["error"]["code"] == "context_length_exceeded"
        ledger = server.calls
    assert [call.outcome for call in ledger] == ["ok", "ok"] + ["invalid"] * 6
    assert totals(ledger)["billed"] == 1
    keys = {call.authorization for call in ledger}
    assert len(keys) == 3
    assert "right" not in json.dumps([list(map(str, keys))])


def test_max_tokens_and_stop_texts_cut_the_answer() -> None:
    with RunningServer(PlainAnswerer("abcdefgh STOP ijk")) as server:
        cut = json.loads(exchange(server, chat(max_tokens=2)).body)
        stopped = json.loads(exchange(server, chat(stop=[" STOP"])).body)
    assert cut["choices"][0]["message"]["content"] == "abcdefgh"
    assert cut["choices"][0]["finish_reason"] == "length"
    assert stopped["choices"][0]["message"]["content"] == "abcdefgh"
    assert stopped["choices"][0]["finish_reason"] == "stop"


class Sure(PlainAnswerer):
    """Says "1 0" and is sure of the first to 3/4."""

    def answer(self, request: dict[str, Any]) -> Reply:
        odds = {0: TokenOdds(math.log(0.75), {"1": math.log(0.75), "0": math.log(0.25)})}
        return Reply("1 0", odds=odds)


def test_logprobs_of_the_answer_hold_what_the_answerer_gave() -> None:
    with RunningServer(Sure()) as server:
        raw = json.loads(exchange(server, chat(logprobs=True, top_logprobs=3)).body)
        none = json.loads(exchange(server, chat()).body)
    tokens = raw["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in tokens] == ["1", " ", "0"]
    assert math.exp(tokens[0]["logprob"]) == pytest.approx(0.75)
    tops = {entry["token"]: math.exp(entry["logprob"]) for entry in tokens[0]["top_logprobs"]}
    assert len(tops) == 3
    assert (tops["1"], tops["0"]) == (pytest.approx(0.75), pytest.approx(0.25))
    for token in tokens:
        values = [entry["logprob"] for entry in token["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert token["token"] in [entry["token"] for entry in token["top_logprobs"]]
        assert sum(math.exp(value) for value in values) <= 1 + 1e-6
    assert none["choices"][0]["logprobs"] is None


def test_prompt_logprobs_come_in_both_shapes_and_say_the_same() -> None:
    prompt = "to be scored"
    with RunningServer(PlainAnswerer("!")) as server:
        echo = {"model": "test", "prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 1}
        echoed = json.loads(exchange(server, echo, "/v1/completions").body)["choices"][0]
        asked = {"model": "test", "prompt": prompt, "prompt_logprobs": 2, "max_tokens": 1}
        by_id = json.loads(exchange(server, asked, "/v1/completions").body)["choices"][0]
        # what is listed is counted, one character a token
        assert [(call.prompt_tokens, call.completion_tokens) for call in server.calls] == [(len(prompt), 1)] * 2
    assert echoed["text"] == prompt + "!"
    lists = echoed["logprobs"]
    assert "".join(lists["tokens"]) == prompt + "!"
    for at, token in zip(lists["text_offset"], lists["tokens"], strict=True):
        assert echoed["text"][at : at + len(token)] == token
    assert lists["token_logprobs"][0] is None
    assert all(-9 < value <= 0 for value in lists["token_logprobs"][1:])
    assert by_id["text"] == "!"
    assert by_id["prompt_logprobs"][0] is None
    own = [next(iter(entries.values())) for entries in by_id["prompt_logprobs"][1:]]
    assert "".join(entry["decoded_token"] for entry in own) == prompt[1:]
    assert [entry["logprob"] for entry in own] == lists["token_logprobs"][1 : len(prompt)]


def test_a_server_without_a_capability_ignores_the_parameter_in_silence() -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "integer", "enum": [7]}}, "required": ["answer"]}
    bound = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}
    with RunningServer(PlainAnswerer("hello")) as able:
        assert answer(exchange(able, chat(**bound))) == '{"answer": 7}'
        assert len(json.loads(exchange(able, chat(n=3)).body)["choices"]) == 3
        drawn = [answer(exchange(able, chat(temperature=1, seed=seed))) for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
    with RunningServer(PlainAnswerer("hello"), capabilities=()) as unable:
        assert answer(exchange(unable, chat(**bound))) == "hello"
        plain = json.loads(exchange(unable, chat(n=3, logprobs=True, top_logprobs=2)).body)
        assert len(plain["choices"]) == 1
        assert plain["choices"][0]["logprobs"] is None
        drawn = [answer(exchange(unable, chat(temperature=1, seed=1))) for _ in range(2)]
        assert drawn[0] != drawn[1]
        scored = {"model": "test", "prompt": "x", "echo": True, "logprobs": 1, "prompt_logprobs": 1}
        choice = json.loads(exchange(unable, scored, "/v1/completions").body)["choices"][0]
        assert (choice["text"], choice["logprobs"], choice.get("prompt_logprobs")) == ("hello", None, None)
    with RunningServer(capabilities=[Capability.PROMPT_LOGPROBS]) as able:
        assert json.loads(exchange(able, chat(logprobs=True)).body)["choices"][0]["logprobs"] is None
        choice = json.loads(exchange(able, scored, "/v1/completions").body)["choices"][0]
        assert choice["logprobs"]["tokens"][0] == "x"


def test_the_prefix_cache_holds_whole_blocks_of_sixteen_tokens() -> None:
    """Against the longest common prefix of all pairs, by brute force."""
    counter, cache = TokenCounter(), PrefixCache()
    prompts = ["a" * 640, "a" * 640, "a" * 320 + "b" * 320, "b" * 640, "a" * 320 + "b" * 100, "", "a" * 63]
    for number, prompt in enumerate(prompts):
        common = 0
        for earlier in prompts[:number]:
            same = next((i for i, (x, y) in enumerate(zip(prompt, earlier, strict=False)) if x != y), None)
            common = max(common, min(len(prompt), len(earlier)) if same is None else same)
        most = max(-(-len(prompt) // 4) - 1, 0)
        want = min(common // 64, most // 16) * 16
        assert cache.cached_tokens(counter.counted(prompt)) == want


def test_cached_tokens_stand_in_usage_and_ledger() -> None:
    with RunningServer() as server:
        for ending in ("one", "two"):
            raw = exchange(server, chat("the same words first " * 20 + ending))
        usage = json.loads(raw.body)["usage"]
    # "<|user|>\n" and 20 * 21 characters are the same: 429 bytes, 6 blocks of 64
    assert usage["prompt_tokens_details"]["cached_tokens"] == 96
    assert [call.cached_tokens for call in server.calls] == [0, 96]


def test_a_tokenizer_counts_where_one_is_given(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    counter = TokenCounter(str(tmp_path / "tokenizer.json"))
    assert counter.count("one two  one") == 3
    assert counter.pieces("one two  one ") == ["one", " two", "  one "]
    assert counter.first("one two one", 2) == "one two"
    assert len(counter.counted("one " * 40).blocks) == 2
    with RunningServer(PlainAnswerer("two two"), tokenizer=str(tmp_path / "tokenizer.json")) as server:
        usage = json.loads(exchange(server, chat("one two")).body)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(render(chat("one two")["messages"]).split()), 2)


# --- faults ------------------------------------------------------------------------------------------------------

REFUSALS: list[tuple[dict[str, Any], int, str | None]] = [
    ({"fault": "rate_limit"}, 429, "rate_limit_exceeded"),
    ({"fault": "insufficient_quota"}, 429, "insufficient_quota"),
    ({"fault": "unauthorized"}, 401, "invalid_api_key"),
    ({"fault": "forbidden"}, 403, None),
    ({"fault": "not_found"}, 404, "model_not_found"),
    ({"fault": "too_long"}, 400, "context_length_exceeded"),
    ({"fault": "status"}, 500, None),
    ({"fault": "status", "status": 502}, 502, None),
    ({"fault": "status", "status": 503}, 503, None),
]


@pytest.mark.parametrize(("rule", "status", "code"), REFUSALS)
def test_refusals(rule: dict[str, Any], status: int, code: str | None) -> None:
    with RunningServer(faults=read_script([rule])) as server:
        raw = exchange(server, chat())
    assert raw.status == status
    assert json.loads(raw.body)["error"]["code"] == code
    assert [(call.outcome, call.billed, call.prompt_tokens) for call in server.calls] == [(rule["fault"], False, 0)]


@pytest.mark.parametrize("value", ["1", "119", "3600", "soon", "-5", "nan", "1e999"])
def test_retry_after_is_sent_as_written(value: str) -> None:
    with faulty("rate_limit", retry_after=value) as server:
        assert exchange(server, chat()).headers["retry-after"] == value
    with faulty("rate_limit") as server:
        assert "retry-after" not in exchange(server, chat()).headers


def test_retry_after_as_a_date_lies_that_far_ahead() -> None:
    with faulty("rate_limit", retry_after="date+90") as server:
        at = parsedate_to_datetime(exchange(server, chat()).headers["retry-after"]).timestamp()
    assert 85 < at - time.time() < 92


def test_a_redirect_points_back_at_this_server() -> None:
    with faulty("redirect") as server:
        raw = exchange(server, chat())
    assert (raw.status, raw.headers["location"]) == (307, "/elsewhere")


def spoiled(fault: str, **request: Any) -> bytes:
    with faulty(fault) as server:
        raw = exchange(server, chat(**request))
        call = server.calls[0]
    assert (raw.status, raw.ended) == (200, "whole")
    assert (call.outcome, call.billed) == (fault, True)
    return raw.body


def message(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(body)["choices"][0]["message"]
    return found


def test_bodies_that_are_no_replies() -> None:
    with pytest.raises(ValueError):
        json.loads(spoiled("broken_json"))
    assert spoiled("html").startswith(b"<!DOCTYPE html>")
    assert spoiled("empty_body") == b""
    with pytest.raises(UnicodeDecodeError):
        spoiled("not_utf8").decode()
    assert "error" in json.loads(spoiled("error_object"))
    assert json.loads(spoiled("no_choices"))["choices"] == []
    assert json.loads(spoiled("null_choices"))["choices"] is None
    assert "usage" not in json.loads(spoiled("no_usage"))
    with pytest.raises(RecursionError):
        json.loads(spoiled("deep_json"))
    wrong = json.loads(spoiled("wrong_types"))
    assert wrong["choices"][0]["message"] == 17
    assert wrong["usage"]["prompt_tokens"] == "many"
    assert "x_new_in_this_release" in json.loads(spoiled("extra_keys"))["choices"][0]["message"]


def test_answers_that_are_no_answers() -> None:
    assert message(spoiled("null_content"))["content"] is None
    cut = json.loads(spoiled("length"))["choices"][0]
    assert (cut["finish_reason"], cut["message"]["content"]) == ("length", '{"label":')
    null_cut = json.loads(spoiled("null_length"))["choices"][0]
    assert (null_cut["finish_reason"], null_cut["message"]["content"]) == ("length", None)
    refused = message(spoiled("refusal"))
    assert refused["content"] is None
    assert "can't help" in refused["refusal"]
    assert json.loads(spoiled("content_filter"))["choices"][0]["finish_reason"] == "content_filter"
    with pytest.raises(RecursionError):
        json.loads(message(spoiled("deep_answer"))["content"])
    assert json.loads(message(spoiled("extra_answer_key"))["content"]) == {
        "label": "digits",
        "remarks": "none asked for",
    }
    assert json.loads(message(spoiled("nul"))["content"]) == {"label": "with a \x00 in it"}
    assert "\x00" in message(spoiled("raw_nul"))["content"]
    assert "\ud83d" in json.loads(message(spoiled("surrogates"))["content"])["label"]
    assert "\ud83d" in message(spoiled("raw_surrogates"))["content"]
    assert len(spoiled("long_label")) > 1_000_000
    assert message(spoiled("prose"))["content"].startswith("Sure!")
    assert message(spoiled("broken_answer"))["content"] == '{"label":'
    assert message(spoiled("empty_answer"))["content"] == ""


@pytest.mark.parametrize(
    ("fault", "wanted"), [("nan_logprobs", "NaN"), ("inf_logprobs", "-Infinity"), ("null_logprobs", "None")]
)
def test_spoiled_logprobs(fault: str, wanted: str) -> None:
    names = {"NaN": math.isnan, "-Infinity": lambda v: v == -math.inf, "None": lambda v: v is None}
    with faulty(fault) as server:
        for request, path in (
            (chat(logprobs=True, top_logprobs=2), "/v1/chat/completions"),
            ({"model": "test", "prompt": "ab", "echo": True, "logprobs": 2}, "/v1/completions"),
            ({"model": "test", "prompt": "ab", "prompt_logprobs": 2}, "/v1/completions"),
        ):
            choice = json.loads(exchange(server, request, path).body)["choices"][0]
            if "message" in choice:
                values = [token["logprob"] for token in choice["logprobs"]["content"]]
            elif choice.get("prompt_logprobs"):
                values = [entry["logprob"] for entry in choice["prompt_logprobs"][1].values()]
            else:
                values = choice["logprobs"]["token_logprobs"][1:]
            assert values
            assert all(names[wanted](value) for value in values), (path, values)


def test_logprobs_that_are_missing() -> None:
    with faulty("missing_logprobs") as server:
        assert json.loads(exchange(server, chat(logprobs=True)).body)["choices"][0]["logprobs"] is None


def test_hangs_end_only_with_the_clients_patience() -> None:
    with faulty("hang") as server:
        raw = exchange(server, chat(), timeout_s=0.3)
        assert (raw.status, raw.ended, raw.body) == (0, "time", b"")
        assert (server.calls[0].outcome, server.calls[0].billed) == ("hang", True)
    with faulty("hang_after_headers") as server:
        raw = exchange(server, chat(), timeout_s=0.3)
        assert (raw.status, raw.ended, raw.body) == (200, "time", b"")


def test_a_drip_gives_one_byte_at_a_time() -> None:
    with faulty("drip", seconds=0.05) as server:
        begin = time.monotonic()
        raw = exchange(server, chat(), timeout_s=1.0)
        seen = len(raw.body) / ((time.monotonic() - begin) / 0.05)
    assert (raw.status, raw.ended) == (200, "time")
    assert 0.3 < seen < 1.2
    assert int(raw.headers["content-length"]) > len(raw.body)


def test_a_huge_body_and_a_gzip_bomb() -> None:
    with faulty("huge_body", size_bytes=20_000_000) as server:
        raw = exchange(server, chat())
        assert len(raw.body) == 20_000_000
        json.loads(raw.body)
    with faulty("gzip_bomb", size_bytes=20_000_000) as server:
        raw = exchange(server, chat())
        assert raw.headers["content-encoding"] == "gzip"
        assert len(raw.body) < 100_000
        assert len(zlib.decompress(raw.body, 31)) >= 20_000_000
    assert FaultRule("huge_body").size_bytes == 100_000_000


def test_connections_that_break() -> None:
    with faulty("reset_before_headers") as server:
        raw = exchange(server, chat())
        assert (raw.status, raw.ended) == (0, "reset")
    with faulty("reset_after_headers") as server:
        raw = exchange(server, chat())
        assert (raw.status, raw.ended) == (200, "reset")
        assert 0 < len(raw.body) < int(raw.headers["content-length"])
    with faulty("closed_early") as server:
        raw = exchange(server, chat())
        assert (raw.status, raw.ended) == (200, "end")
        assert 0 < len(raw.body) < int(raw.headers["content-length"])
    with faulty("no_http") as server:
        assert exchange(server, chat(), timeout_s=1).status == 0


def test_a_late_answer_is_late_and_good() -> None:
    with faulty("late", seconds=0.3) as server:
        begin = time.monotonic()
        assert exchange(server, chat()).status == 200
        assert time.monotonic() - begin >= 0.3


def test_a_server_that_dies_takes_no_more_connections_and_another_can_take_its_port(tmp_path: Path) -> None:
    with faulty("die", at=(1,)) as server:
        assert exchange(server, chat()).status == 200
        assert exchange(server, chat()).ended == "reset"
        with pytest.raises(ConnectionRefusedError):
            exchange(server, chat())
        assert [call.outcome for call in server.calls] == ["ok", "die"]
        with RunningServer(port=server.port) as second:
            assert exchange(second, chat()).status == 200
    with RunningServer() as server:
        server.die()
        with pytest.raises(ConnectionRefusedError):
            exchange(server, chat())


def test_every_fault_is_tried_above() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert not [name for name in FAULTS if f'"{name}"' not in source]


# --- which requests meet a fault -----------------------------------------------------------------------------------


def statuses(server: RunningServer, texts: list[str]) -> list[int]:
    return [exchange(server, chat(text)).status for text in texts]


def test_faults_by_ordinal_by_text_and_so_many_times() -> None:
    script = read_script(
        [
            {"fault": "status", "status": 500, "at": [0, 2]},
            {"fault": "status", "status": 502, "containing": "w17", "times": 1},
            {"fault": "status", "status": 503, "containing": "twice", "tries": 2},
        ]
    )
    with RunningServer(faults=script) as server:
        assert statuses(server, ["a", "b", "c", "d w17", "d w17"]) == [500, 200, 500, 502, 200]
        assert statuses(server, ["twice x", "twice x", "twice x", "twice y"]) == [503, 503, 200, 503]


def test_faults_at_random_do_not_depend_on_the_order_of_arrival() -> None:
    rule = {"fault": "status", "rate": 0.3, "seed": 5}
    texts = [f"request {number}" for number in range(200)]
    found = []
    for order in (texts, texts[::-1]):
        with RunningServer(faults=read_script([rule])) as server:
            found.append(dict(zip(order, statuses(server, order), strict=True)))
    assert found[0] == found[1]
    # 200 draws at 0.3: 60, sd 6.5
    assert 40 < sum(status == 500 for status in found[0].values()) < 80
    with RunningServer(faults=read_script([{**rule, "seed": 6}])) as server:
        assert dict(zip(texts, statuses(server, texts), strict=True)) != found[0]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"fault": "hang"}, "JSON list"),
        ([{"fault": "hung"}], "did you mean 'hang'"),
        ([{"at": [1]}], "no name"),
        ([{"fault": "hang", "rat": 0.3}], "did you mean 'rate'"),
        ([{"fault": "hang", "rate": 30}], "from 0 to 1"),
        ([{"fault": "hang", "at": ["first"]}], "whole numbers"),
    ],
)
def test_a_script_that_is_wrong_is_refused(entries: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_script(path)
    path.write_text("[")
    with pytest.raises(ConfigError, match="no script of faults"):
        load_script(path)


# --- latency, concurrency, ledger, process -------------------------------------------------------------------------


def in_threads(server: RunningServer, count: int) -> list[Raw]:
    found: list[Raw] = []
    threads = [threading.Thread(target=lambda: found.append(exchange(server, chat()))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_requests_run_together_and_each_takes_the_latency() -> None:
    with RunningServer(latency_s=0.3) as server:
        begin = time.monotonic()
        replies = in_threads(server, 16)
        took = time.monotonic() - begin
        most = server.server.most_in_flight
    assert [raw.status for raw in replies] == [200] * 16
    assert 0.3 <= took < 1.5
    assert most == 16


def test_above_its_limit_the_server_answers_429() -> None:
    with RunningServer(latency_s=0.4, max_concurrency=4, busy_retry_after="2") as server:
        replies = in_threads(server, 10)
        counts = [call.outcome for call in server.calls]
    assert sorted(raw.status for raw in replies) == [200] * 4 + [429] * 6
    assert {raw.headers.get("retry-after") for raw in replies if raw.status == 429} == {"2"}
    assert sorted(counts) == ["busy"] * 6 + ["ok"] * 4


def test_a_client_that_leaves_is_entered_as_gone_and_billed() -> None:
    with RunningServer(latency_s=0.3) as server:
        exchange(server, chat(), timeout_s=0.05)
        time.sleep(0.5)
        assert [(call.outcome, call.billed) for call in server.calls] == [("gone", True)]


class Broken(PlainAnswerer):
    def answer(self, request: dict[str, Any]) -> Reply:
        raise ZeroDivisionError("the answerer's own fault")


def test_an_error_of_the_answerer_is_raised_where_the_server_was_started() -> None:
    with pytest.raises(ZeroDivisionError), RunningServer(Broken()) as server:
        assert exchange(server, chat()).ended == "reset"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    ledger, script = tmp_path / "ledger.jsonl", tmp_path / "faults.json"
    script.write_text(json.dumps([{"fault": "status", "status": 503, "at": [1]}]))
    command = [sys.executable, "-m", "autointerp.llm.server", "--latency-ms", "50", "--answer", "from afar"]
    command += ["--script", str(script), "--ledger", str(ledger), "--without", "seed"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as child:
        assert child.stdout is not None
        yield child, child.stdout.readline().strip(), ledger
        child.kill()


def test_a_server_in_a_process_of_its_own_and_its_ledger_after_a_kill(
    process: tuple[subprocess.Popen[str], str, Path],
) -> None:
    child, url, path = process
    request = urllib.request.Request(
        f"{url}/chat/completions",
        data=json.dumps(chat("over there")).encode(),
        headers={"Content-Type": "application/json", "Authorization": "Bearer sk-secret"},
    )
    begin = time.monotonic()
    with urllib.request.urlopen(request) as response:
        assert json.load(response)["choices"][0]["message"]["content"] == "from afar"
    assert time.monotonic() - begin >= 0.05
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(request)
    child.send_signal(signal.SIGKILL)
    child.wait()
    with path.open("a") as file:
        file.write('{"ordinal": 2, "cut')
    calls = read_ledger(path)
    assert [(type(call), call.outcome, call.prompt) for call in calls] == [
        (Call, "ok", "over there"),
        (Call, "status", "over there"),
    ]
    assert calls[0].request["messages"][0]["content"] == "over there"
    assert "sk-secret" not in path.read_text()
    assert calls[0].authorization is not None
