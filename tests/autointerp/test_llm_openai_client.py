"""The openai endpoint against real servers on this machine that answer any bytes: one call each, one typed end each."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import resource
import socket
import ssl
import subprocess
import time
import zlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from autointerp.components import parse_component
from autointerp.failure import FailureKind
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
from autointerp.llm.endpoints.openai import OpenAIEndpoint
from autointerp.llm.http_failures import http_failure, retry_after_s
from autointerp.llm.protocol import CompletionRequest, Message
from autointerp.llm.validation import read_reply
from sae_core.errors import ConfigError

KEY = "sk-planted-SECRET-0123456789"
CHAT = CompletionRequest(
    messages=(Message(role="system", content="Be short."), Message(role="user", content="Say hello.")), max_tokens=7
)
SCORED = CompletionRequest(text="a b c", max_tokens=0, prompt_logprobs=5)
GOOD = {
    "model": "m",
    "choices": [{"message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2},
}
SCHEMA = {"type": "object"}


class Seen:
    """One request as it came over the wire."""

    def __init__(self, head: bytes, body: bytes) -> None:
        first, *lines = head.decode().split("\r\n")
        self.line = first
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines if line)}
        self.body: Any = json.loads(body)


Script = Callable[[asyncio.StreamWriter, Seen], Awaitable[None]]


class RawServer:
    """Reads requests and lets ``script`` write whatever it likes."""

    def __init__(self, script: Script, context: ssl.SSLContext | None = None) -> None:
        self.script, self.context = script, context
        self.seen: list[Seen] = []

    async def __aenter__(self) -> RawServer:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
                length = int(Seen(head, b"null").headers["content-length"])
                seen = Seen(head, await reader.readexactly(length))
                self.seen.append(seen)
                await self.script(writer, seen)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()


def http(body: bytes | str | dict[str, Any], status: str = "200 OK", **headers: str) -> bytes:
    """A whole HTTP reply."""
    content = json.dumps(body).encode() if isinstance(body, dict) else body.encode() if isinstance(body, str) else body
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *lines])
    return head.encode() + b"\r\n\r\n" + content


def writes(data: bytes) -> Script:
    async def script(writer: asyncio.StreamWriter, _: Seen) -> None:
        writer.write(data)

    return script


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_LLM_KEY", KEY)
    # what the environment of a user may hold, and what no other server may get
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-private")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Private: yes\nAuthorization: Bearer other")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")


def call(
    script: Script,
    request: CompletionRequest = CHAT,
    *,
    deadline_s: float = 5.0,
    bound: bool = False,
    with_key: bool = True,
    **fields: Any,
) -> tuple[str, list[Seen]]:
    """One call; the raw reply and what the server saw. Errors as the client raises them, checked to hold no key."""

    async def run() -> tuple[str, list[Seen]]:
        async with RawServer(script) as server:
            endpoint = OpenAIEndpoint(
                base_url=f"http://127.0.0.1:{server.port}/v1",
                model="m",
                api_key_env="TEST_LLM_KEY" if with_key else None,
                **fields,
            )
            client = endpoint.open()
            try:
                return await client.send(request, deadline_s, bound=bound), server.seen
            except CallError as error:
                told = f"{error!r} {error} {error.__cause__!r} {error.__context__!r}"
                if KEY in told or len(server.seen) > 1:
                    pytest.fail(f"the client shows its key or tries again by itself: {told}, {len(server.seen)} calls")
                raise
            finally:
                await client.close()

    return asyncio.run(run())


def test_a_chat_as_the_server_gets_it() -> None:
    body, [seen] = call(writes(http(GOOD)), bound=True)
    assert read_reply(body, CHAT).text == "Hello."
    assert seen.line == "POST /v1/chat/completions HTTP/1.1"
    assert seen.body == {
        "model": "m",
        "temperature": 0.0,
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say hello."}],
        "max_tokens": 7,
    }
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.headers["content-type"] == "application/json"
    sent = {"host", "content-type", "accept", "accept-encoding", "authorization", "content-length", "user-agent"}
    assert set(seen.headers) <= sent, "headers from the environment or the client's own were sent"


def test_all_that_can_be_asked() -> None:
    request = CHAT.model_copy(update={"json_schema": SCHEMA, "seed": 3, "temperature": 1.0, "top_logprobs": 5})
    _, [seen] = call(writes(http(GOOD)), request, bound=True, extra_body={"top_k": 40})
    assert seen.body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
    }
    assert {name: seen.body[name] for name in ("seed", "temperature", "logprobs", "top_logprobs", "top_k")} == {
        "seed": 3,
        "temperature": 1.0,
        "logprobs": True,
        "top_logprobs": 5,
        "top_k": 40,
    }


def test_ways_to_bind() -> None:
    request = CHAT.model_copy(update={"json_schema": SCHEMA})
    for mode, bound, expected in (
        ("schema", False, None),
        ("none", True, None),
        ("object", False, None),
        ("object", True, {"type": "json_object", "schema": SCHEMA}),
    ):
        _, [seen] = call(writes(http(GOOD)), request, bound=bound, json_mode=mode)
        assert seen.body.get("response_format") == expected


def test_a_plain_text_goes_to_the_completions() -> None:
    _, [seen] = call(writes(http(GOOD)), SCORED)
    assert seen.line == "POST /v1/completions HTTP/1.1"
    expected = {"model": "m", "temperature": 0.0, "prompt": "a b c", "max_tokens": 0, "echo": True, "logprobs": 5}
    assert seen.body == expected
    _, [seen] = call(writes(http(GOOD)), SCORED, prompt_logprobs_api="vllm")
    assert seen.body["prompt_logprobs"] == 5
    assert "echo" not in seen.body


def test_the_token_limits_name() -> None:
    _, [seen] = call(writes(http(GOOD)), max_tokens_name="max_completion_tokens")
    assert seen.body["max_completion_tokens"] == 7
    assert "max_tokens" not in seen.body
    assert OpenAIEndpoint(model="m").token_limit() == "max_completion_tokens"
    assert OpenAIEndpoint(model="m", base_url="http://127.0.0.1:1/v1").token_limit() == "max_tokens"


def test_a_chat_has_room_for_thoughts_and_a_scored_text_has_not() -> None:
    _, [seen] = call(writes(http(GOOD)), thinking_tokens=1000)
    assert seen.body["max_tokens"] == 1007
    _, [seen] = call(writes(http(GOOD)), SCORED, thinking_tokens=1000)
    assert seen.body["max_tokens"] == 0


def test_no_key_is_sent_where_none_is_named() -> None:
    _, [seen] = call(writes(http(GOOD)), with_key=False)
    assert "authorization" not in seen.headers


def test_half_characters_of_a_corpus_do_not_stop_a_call() -> None:
    request = CompletionRequest(messages=(Message.model_construct(role="user", content="a\ud800b é"),))
    _, [seen] = call(writes(http(GOOD)), request)
    assert seen.body["messages"][0]["content"] == "a?b é"


def test_a_key_that_a_server_repeats_is_not_passed_on() -> None:
    body, _ = call(writes(http({"echo": f"your key is {KEY}"})))
    assert body == '{"echo": "your key is [key]"}'


ERROR = '{"error": {"message": "%s", "type": "t", "code": "%s"}}'


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        ("400 Bad Request", ERROR % ("This model's maximum context length is 512", "x"), Rejected, "context length"),
        ("413 Payload Too Large", "<html>nginx</html>", Rejected, "a page of HTML"),
        ("422 Unprocessable", '{"detail": [{"msg": "bad"}]}', Rejected, "bad"),
        ("418 I'm a teapot", "", Rejected, "HTTP 418"),
        ("401 Unauthorized", ERROR % (f"Incorrect API key provided: {KEY}", "invalid_api_key"), Denied, "TEST_LLM_KEY"),
        ("403 Forbidden", ERROR % (f"not for {KEY}, \\u001b[31mred", "x"), Forbidden, "not for [key], [31mred"),
        ("403 Forbidden", ERROR % ("your project has no access", "model_not_found"), Denied, "no access"),
        ("403 Forbidden", ERROR % ("Your account was flagged for its content policy", "x"), Forbidden, "account"),
        ("403 Forbidden", ERROR % ("The prompt was flagged", "x"), Refused, "moderation refuses"),
        ("400 Bad Request", ERROR % ("filtered", "content_filter"), Refused, "moderation refuses"),
        ("404 Not Found", ERROR % ("no", "content_policy_violation"), Refused, "HTTP 404"),
        ("429 Too Many Requests", ERROR % ("no", "moderation"), RateLimited, "HTTP 429"),
        ("404 Not Found", ERROR % ("The model `m` does not exist", "model_not_found"), Denied, "does not exist"),
        ("404 Not Found", '{"detail":"Not Found"}', Denied, "Not Found"),
        ("400 Bad Request", ERROR % ("no such model", "model_not_found"), Denied, "no such model"),
        ("402 Payment Required", ERROR % ("pay", "x"), Denied, "no credit"),
        ("429 Too Many Requests", ERROR % ("You exceeded your quota", "insufficient_quota"), Denied, "no credit"),
        ("429 Too Many Requests", ERROR % ("limit", "billing_hard_limit_reached"), Denied, "no credit"),
        ("429 Too Many Requests", ERROR % ("slow down", "rate_limit_exceeded"), RateLimited, "slow down"),
        ("429 Too Many Requests", "", RateLimited, "HTTP 429"),
        ("500 Internal Server Error", ERROR % ("Out of range float", "x"), Transient, "Out of range"),
        ("502 Bad Gateway", "<html>", Transient, "HTTP 502"),
        ("503 Service Unavailable", "[" * 5000, Transient, "HTTP 503"),
        ("529 Overloaded", "", Transient, "HTTP 529"),
        ("409 Conflict", "", Transient, "HTTP 409"),
        ("408 Request Timeout", "", Transient, "too long"),
        ("301 Moved", "", Denied, "base_url"),
        ("304 Not Modified", "", Denied, "base_url"),
        ("777 What", "", InvalidReply, "777"),
    ],
)
def test_a_status_is_a_typed_error(status: str, body: str, kind: type[CallError], message: str) -> None:
    with pytest.raises(kind) as caught:
        call(writes(http(body, status)))
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert "\x1b" not in str(caught.value)
    if isinstance(caught.value, Transient):
        assert caught.value.status == int(status[:3])


def test_a_long_message_is_cut() -> None:
    with pytest.raises(Rejected) as caught:
        call(writes(http(ERROR % ("x" * 5000 + KEY, "c"), "400 Bad Request")))
    assert len(str(caught.value)) < 400


NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "1"}, 1.0),
        ({"retry-after": "119"}, 119.0),
        ({"retry-after": "3600"}, 3600.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "\u0661"}, None),
        ({"retry-after": "later"}, None),
        ({"retry-after": format_datetime(NOW + timedelta(seconds=30), usegmt=True)}, 30.0),
        ({"retry-after": format_datetime(NOW - timedelta(seconds=30), usegmt=True)}, None),
        ({"retry-after": "Mon, 04 May 2026 99:99:99 GMT"}, None),
        ({"retry-after": "Mon, 04 May 99999 12:00:00 GMT"}, None),
    ],
)
def test_what_a_server_asks_to_wait(headers: dict[str, str], wait_s: float | None) -> None:
    assert retry_after_s(headers, NOW) == wait_s


def test_the_wait_comes_from_the_wire() -> None:
    with pytest.raises(RateLimited) as caught:
        call(writes(http("", "429 Too Many Requests", Retry_After="119")))
    assert caught.value.retry_after_s == 119.0


def test_a_redirect_is_not_followed() -> None:
    async def run() -> list[Seen]:
        async with RawServer(writes(http(GOOD))) as other:
            target = f"http://127.0.0.1:{other.port}/v1/chat/completions"
            async with RawServer(writes(http("", "307 Temporary Redirect", Location=target))) as server:
                client = OpenAIEndpoint(
                    base_url=f"http://127.0.0.1:{server.port}/v1", model="m", api_key_env="TEST_LLM_KEY"
                ).open()
                with pytest.raises(Denied, match="sends elsewhere"):
                    await client.send(CHAT, 5.0, bound=False)
                await client.close()
            return other.seen

    assert asyncio.run(run()) == []


async def hang(writer: asyncio.StreamWriter, _: Seen) -> None:
    await asyncio.sleep(60)


async def drip(writer: asyncio.StreamWriter, _: Seen) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def drip_headers(writer: asyncio.StreamWriter, _: Seen) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(1000):
        writer.write(b"X-%d: a\r\n" % number)
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("script", [hang, drip, drip_headers])
def test_the_deadline_holds_for_the_whole_call(script: Script) -> None:
    begun_s = time.monotonic()
    with pytest.raises(Transient) as caught:
        call(script, deadline_s=0.3)
    assert time.monotonic() - begun_s < 2.0
    assert caught.value.kind is FailureKind.TIMEOUT
    assert caught.value.maybe_paid


async def reset(writer: asyncio.StreamWriter, _: Seen) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()


async def close_early(writer: asyncio.StreamWriter, _: Seen) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    await writer.drain()
    writer.close()


async def break_chunks(writer: asyncio.StreamWriter, _: Seen) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc")
    await writer.drain()
    writer.close()


@pytest.mark.parametrize("script", [reset, close_early, break_chunks])
def test_a_connection_that_breaks_may_be_paid(script: Script) -> None:
    with pytest.raises(Transient) as caught:
        call(script)
    assert caught.value.maybe_paid
    assert caught.value.kind is FailureKind.SERVER_ERROR


def test_nobody_there_is_not_paid() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        async def run() -> None:
            client = OpenAIEndpoint(base_url=f"http://127.0.0.1:{port}/v1", model="m").open()
            try:
                await client.send(CHAT, 5.0, bound=False)
            finally:
                await client.close()

        with pytest.raises(Transient, match="no connection") as caught:
            asyncio.run(run())
    assert not caught.value.maybe_paid


def test_something_that_is_no_http_server() -> None:
    with pytest.raises(InvalidReply, match="does not speak HTTP"):
        call(writes(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"))


async def endless(writer: asyncio.StreamWriter, _: Seen) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    block = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    for _ in range(1600):
        writer.write(block)
        await writer.drain()


def bomb(size_bytes: int, wbits: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    block = b"x" * 2**20
    return b"".join(packer.compress(block) for _ in range(size_bytes // 2**20)) + packer.flush()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("request_", [CHAT, SCORED])
def test_a_body_without_end_is_cut_off(request_: CompletionRequest) -> None:
    call(writes(http(GOOD)))
    before = peak_bytes()
    with pytest.raises(InvalidReply, match=f"longer than {2**20 if request_ is CHAT else 2**24} bytes"):
        call(endless, request_)
    assert peak_bytes() - before < 70e6


@pytest.mark.parametrize(("wbits", "name"), [(31, "gzip"), (15, "deflate")])
@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
def test_a_packed_bomb_is_not_unpacked(wbits: int, name: str, status: str) -> None:
    packed = bomb(300 * 2**20, wbits)
    call(writes(http(GOOD)))
    before = peak_bytes()
    with pytest.raises(InvalidReply if status == "200 OK" else Transient):
        call(writes(http(packed, status, Content_Encoding=name)))
    assert peak_bytes() - before < 50e6


def test_a_long_reply_with_log_probabilities_is_read() -> None:
    long = {**GOOD, "filler": "x" * 3_000_000}
    body, _ = call(writes(http(long)), SCORED)
    assert len(body) > 3_000_000


def test_a_packed_reply_is_read_though_none_was_asked_for() -> None:
    packed = gzip.compress(json.dumps(GOOD).encode())
    body, [seen] = call(writes(http(packed, Content_Encoding="gzip")))
    assert json.loads(body) == GOOD
    assert seen.headers["accept-encoding"] == "identity"
    for broken in (http(packed[:10] + b"?" * 40, Content_Encoding="gzip"), http(packed, Content_Encoding="br")):
        with pytest.raises(InvalidReply):
            call(writes(broken))


@pytest.mark.parametrize("content", [b"<html></html>", b"", b"{", b"\xff\xfe\x00", b'"text"', b"[" * 100_000])
def test_any_body_of_a_success_is_handed_on_unread(content: bytes) -> None:
    body, _ = call(writes(http(content)))
    assert body == content.decode("utf-8", "replace")


def test_many_calls_share_connections_and_come_back_each_with_its_own() -> None:
    async def answer(writer: asyncio.StreamWriter, seen: Seen) -> None:
        await asyncio.sleep(0.01)
        writer.write(http({"said": seen.body["messages"][0]["content"]}))

    async def run() -> None:
        connections = set()

        async def script(writer: asyncio.StreamWriter, seen: Seen) -> None:
            connections.add(id(writer))
            await answer(writer, seen)

        async with RawServer(script) as server:
            client = OpenAIEndpoint(base_url=f"http://127.0.0.1:{server.port}/v1", model="m").open()

            async def one(number: int) -> None:
                request = CompletionRequest(messages=(Message(role="user", content=str(number)),))
                assert json.loads(await client.send(request, 5.0, bound=False)) == {"said": str(number)}

            for _ in range(3):
                await asyncio.gather(*(one(number) for number in range(130)))
            await client.close()
        assert len(connections) <= 130

    asyncio.run(run())


def test_a_cancelled_call_ends_at_once() -> None:
    async def run() -> None:
        async with RawServer(hang) as server:
            client = OpenAIEndpoint(base_url=f"http://127.0.0.1:{server.port}/v1", model="m").open()
            task = asyncio.ensure_future(client.send(CHAT, 60.0, bound=False))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await client.close()

    asyncio.run(run())


def test_a_certificate_that_is_not_valid_is_no_passing_trouble(tmp_path: Path) -> None:
    made = subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-out",
            "cert",
            "-keyout",
            "key",
        ],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("openssl makes no certificate here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")

    async def run() -> None:
        async with RawServer(writes(http(GOOD)), context) as server:
            server.server.get_loop().set_exception_handler(lambda *_: None)
            client = OpenAIEndpoint(
                base_url=f"https://127.0.0.1:{server.port}/v1", model="m", api_key_env="TEST_LLM_KEY"
            ).open()
            try:
                with pytest.raises(Denied, match="certificate"):
                    await client.send(CHAT, 5.0, bound=False)
            finally:
                await client.close()
            assert server.seen == []

    asyncio.run(run())


def test_no_key_in_any_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        call(writes(http(GOOD)))
        with pytest.raises(Denied):
            call(writes(http(ERROR % (KEY, "x"), "403 Forbidden", WWW_Authenticate=KEY)))
    assert caplog.records
    for record in caplog.records:
        assert KEY not in f"{record.getMessage()} {record.args!r}"


def test_the_client_does_not_show_its_key() -> None:
    client = OpenAIEndpoint(model="m", api_key_env="TEST_LLM_KEY").open()
    assert KEY not in repr(vars(client)) + repr(vars(client._client))  # type: ignore[attr-defined]


def test_keys_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="without a key"):
        OpenAIEndpoint(model="m").open()
    for value in ("", "  \n"):
        monkeypatch.setenv("TEST_LLM_KEY", value)
        with pytest.raises(ConfigError, match="TEST_LLM_KEY, which is not set"):
            OpenAIEndpoint(model="m", api_key_env="TEST_LLM_KEY").open()
    monkeypatch.setenv("TEST_LLM_KEY", "two words")
    with pytest.raises(ConfigError, match="characters that no key has") as caught:
        OpenAIEndpoint(model="m", api_key_env="TEST_LLM_KEY").open()
    assert "two words" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"api_key_env": "sk-proj-oops123"}, "NAME of an environment variable"),
        ({"api_key_env": "hf_oopsOops"}, "NAME of an environment variable"),
        ({"base_url": "http://user:oops@127.0.0.1/v1"}, "no user, password"),
        ({"base_url": "https://127.0.0.1/v1?key=oops"}, "no user, password"),
        ({"base_url": "ftp://oops/v1"}, "give an address like"),
        ({"base_url": "oops:8000"}, "give an address like"),
        ({"base_url": "http://[oops/v1"}, "give an address like"),
        ({"base_url": "http://oops:99999/v1"}, "give an address like"),
        ({"extra_body": {"messages": []}}, "messages cannot be given"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_without_showing_secrets(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_component("endpoints", {"kind": "openai", "model": "m", **fields})
    assert message in str(caught.value)
    assert "oops" not in f"{caught.value} {caught.value.__cause__}"


def test_a_configuration_is_parsed() -> None:
    endpoint = parse_component(
        "endpoints",
        {"kind": "openai", "name": "local", "model": "m", "base_url": "http://127.0.0.1:8000/v1/", "json_mode": "none"},
    )
    assert isinstance(endpoint, OpenAIEndpoint)
    assert endpoint.base_url == "http://127.0.0.1:8000/v1"
    assert "base_url" not in endpoint.identity()


def test_a_status_without_words() -> None:
    error = http_failure(429, {}, "", key_name="the key")
    assert str(error) == "the server asks to wait (HTTP 429)"
