"""Structured logs: JSON lines that say what they are about, and a planted key in no line of any failure path."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert
from sqlalchemy.exc import SQLAlchemyError

from autointerp.llm.call_errors import CallError
from autointerp.llm.endpoints.openai import OpenAIEndpoint
from autointerp.llm.server import RunningServer
from autointerp.operations import logging as logs
from autointerp.operations.logging import clean, configure_logs, log_event, redact_config, redact_values
from autointerp.store import open_store
from autointerp.store.models import LLMCall
from autointerp.store.opening import sqlite_url
from sae_core.errors import AutointerpError
from tests.servers import PostgresServer, RedisServer, free_port

KEY = "sk-planted-9c41ee07"
PASSWORD = "pl@nted/pw:77"
PROMPT = "a document that nobody may read in a log"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is logged as JSON, with a key and a password planted in the environment."""
    monkeypatch.setattr(logs, "_secrets", set())
    monkeypatch.setenv("JUDGE", KEY)  # a name that tells nothing: the configuration names it
    monkeypatch.setenv("AUTOINTERP_BROKER__URL", f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:1/0")
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    configure_logs(True, level=logging.DEBUG, stream=stream)
    redact_config({"endpoints": [{"kind": "openai", "api_key_env": "JUDGE"}, {"kind": "scripted"}]})
    yield stream
    logging.captureWarnings(False)
    root.handlers[:] = before
    root.setLevel(level)


def parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    text = stream.getvalue()
    assert text.isascii()
    return [json.loads(line) for line in text.splitlines()]


def nothing_leaked(stream: io.StringIO) -> None:
    said = stream.getvalue()
    assert said, "nothing was logged, so this tested nothing"
    for secret in (KEY, PASSWORD, quote(PASSWORD, safe=""), PROMPT):
        assert secret not in said, said


def test_a_line_says_when_how_bad_and_what_it_is_about(lines: io.StringIO) -> None:
    log = logging.getLogger("autointerp.cluster")
    log_event(
        log, logging.WARNING, "lease_expired", "taken back", run="a-1", stage="score", chunk=7, queue="llm", worker="w"
    )
    line = parsed(lines)[0]
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning", "logger": "autointerp.cluster", "event": "lease_expired", "run": "a-1", "stage": "score",
        "chunk": 7, "queue": "llm", "worker": "w", "message": "taken back",
    }  # fmt: skip
    with pytest.raises(AssertionError):
        log_event(log, logging.INFO, "x", "y", prompt=PROMPT)


def test_control_characters_are_shown_and_nothing_breaks_the_line(lines: io.StringIO) -> None:
    logging.getLogger("x\x1b[2J").error("red \x1b[31m and\nforged\r\x00\u202egpj.exe", extra={"run": "a\n1"})
    line = parsed(lines)[0]
    assert line["message"] == "red \\x1b[31m and\\x0aforged\\x0d\\x00\\u202egpj.exe"
    assert line["run"] == "a\\x0a1"
    assert "\x1b" not in json.dumps(line, ensure_ascii=False)


@given(st.text())
def test_any_text_is_one_line_without_control_characters(text: str) -> None:
    said = clean(text)
    assert len(said) <= 1_000
    assert not any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in said)
    json.loads(json.dumps(said))
    record = logging.LogRecord("n", logging.INFO, "p", 1, text, None, None)
    assert "\n" not in logs.JsonFormatter().format(record)
    assert "\n" not in logs.PlainFormatter().format(record)


def test_long_messages_are_cut(lines: io.StringIO) -> None:
    logging.getLogger("x").info("%s", "y" * 100_000)
    assert len(lines.getvalue()) < 1_300


def test_a_message_that_cannot_be_made_is_still_a_line() -> None:
    record = logging.LogRecord("n", logging.INFO, "p", 1, "%d", ("no number",), None)
    assert json.loads(logs.JsonFormatter().format(record))["message"] == "%d"


# a planted key in no failure path


def logged_failure(error_of: Any) -> None:
    """Do something that fails, and log the failure as a worker does: with its traceback."""
    try:
        error_of()
    except (CallError, AutointerpError, SQLAlchemyError, OSError, ValueError, KeyError) as error:
        logging.getLogger("autointerp").exception("chunk failed: %s", error, extra={"run": "a-1"})
    else:
        raise AssertionError("it did not fail")


@pytest.mark.parametrize("fault", ["refused key", "echoed key", "nobody there"])
def test_calls_that_fail(lines: io.StringIO, fault: str) -> None:
    from autointerp.llm.protocol import CompletionRequest, Message

    request = CompletionRequest(messages=(Message(role="user", content=PROMPT),), max_tokens=4)

    async def ask(url: str) -> str:
        client = OpenAIEndpoint(name="judge", model="test", base_url=url, api_key_env="JUDGE").open()
        try:
            return await client.send(request, 5.0, bound=False)
        finally:
            await client.close()

    with RunningServer(api_key="another") as server:
        url = f"http://127.0.0.1:{free_port()}/v1" if fault == "nobody there" else server.url
        logged_failure(lambda: asyncio.run(ask(url)))
    if fault == "echoed key":
        logged_failure(lambda: (_ for _ in ()).throw(ValueError(f"server said: bad key {KEY}, header Bearer {KEY}")))
    nothing_leaked(lines)
    assert parsed(lines)[-1]["trace"]


def test_a_database_that_refuses(lines: io.StringIO) -> None:
    with PostgresServer(password=PASSWORD) as server:
        logged_failure(lambda: open_store(server.url.replace(quote(PASSWORD, safe=""), KEY)))
        logged_failure(lambda: open_store(server.url + "missing"))
    logged_failure(lambda: open_store(server.url))
    nothing_leaked(lines)


def test_rows_that_a_database_refuses_are_not_shown(lines: io.StringIO, tmp_path: Path) -> None:
    store = open_store(sqlite_url(tmp_path / "s.db"))

    def write() -> None:
        with store.writing() as connection:
            connection.execute(insert(LLMCall).values(run_id="none", reply=PROMPT.encode(), model=PROMPT))

    logged_failure(write)
    assert PROMPT[:20] not in lines.getvalue()
    nothing_leaked(lines)


def test_a_broker_that_refuses(lines: io.StringIO) -> None:
    import redis

    with RedisServer(password="other-pw-1") as server:
        url = f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/0"

        def ping(address: str) -> None:
            try:
                redis.Redis.from_url(address).ping()
            except redis.RedisError as error:
                raise ValueError(f"broker {address} refuses: {error}") from error

        logged_failure(lambda: ping(url))
    logged_failure(lambda: ping(url))
    nothing_leaked(lines)
    assert "redis://:***@" in lines.getvalue()


def test_secrets_in_arguments_fields_and_chained_errors(lines: io.StringIO) -> None:
    log = logging.getLogger("celery.worker")
    log.info("Connected to %s", f"redis://user:{quote(PASSWORD, safe='')}@host/0", extra={"worker": KEY})
    log.info("task args %r", {"headers": {"Authorization": f"Bearer {KEY}"}})
    try:
        try:
            raise KeyError(KEY)
        except KeyError as error:
            raise RuntimeError(f"while asking with {KEY}") from error
    except RuntimeError:
        log.exception("failed")
    log.warning("postgresql://me:unheard-of-secret@host/db and amqp://u:another-one@h//")
    nothing_leaked(lines)
    assert "unheard-of-secret" not in lines.getvalue()
    assert "another-one" not in lines.getvalue()
    assert "KeyError" in parsed(lines)[2]["error"]


def test_libraries_that_log_bodies_are_quiet(lines: io.StringIO) -> None:
    for name in ("openai._base_client", "httpx2", "sqlalchemy.engine.Engine"):
        logging.getLogger(name).debug("Request options: %s", PROMPT)
        logging.getLogger(name).info("%s", PROMPT)
    assert lines.getvalue() == ""


def test_short_and_empty_values_black_out_nothing(lines: io.StringIO) -> None:
    redact_values(["", "a", "the"])
    logging.getLogger("x").info("the cat sat")
    assert parsed(lines)[0]["message"] == "the cat sat"


def test_a_process_of_its_own_logs_no_secret_of_its_environment(tmp_path: Path) -> None:
    code = """
        import logging, os, warnings
        from autointerp.operations.logging import configure_logs
        configure_logs(os.environ["JSON"] == "1")
        log = logging.getLogger("workers")
        log.info("environment %s", dict(os.environ))
        warnings.warn("deprecated " + os.environ["MY_API_KEY"])
        try:
            open(os.environ["MY_API_KEY"])
        except OSError:
            log.exception("cannot open")
    """
    for form in ("1", "0"):
        environment = {
            **os.environ,
            "MY_API_KEY": KEY,
            "JSON": form,
            "AUTOINTERP_STORE__URL": f"postgresql://u:{quote(PASSWORD, safe='')}@h/d",
        }
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
            check=True,
        )
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 3
        for secret in (KEY, PASSWORD, quote(PASSWORD, safe="")):
            assert secret not in done.stderr
        assert "***" in done.stderr
