"""The Batch API client against a scripted provider: every request is answered, once, whatever becomes of batches and processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from autointerp.components import parse_component
from autointerp.llm.batch_journal import BatchRecord, FileJournal
from autointerp.llm.call_errors import CallError, Denied, InvalidReply, RateLimited, Rejected, Transient
from autointerp.llm.endpoints.openai_batch import OpenAIBatchEndpoint
from autointerp.llm.protocol import CompletionRequest, Message, Usage
from autointerp.llm.validation import read_reply
from tests.autointerp.batch_server import BatchServer, Play

ROOT = Path(__file__).parents[2]


def endpoint(server: BatchServer, **fields: Any) -> OpenAIBatchEndpoint:
    return OpenAIBatchEndpoint(
        model="m", base_url=server.base_url, **{"window_s": 0.05, "poll_s": 0.01, "timeout_s": 20.0, **fields}
    )


def question(text: str, **fields: Any) -> CompletionRequest:
    return CompletionRequest(messages=(Message(role="user", content=text),), **fields)


def ask(
    server: BatchServer, folder: Path, texts: Iterable[str], deadline_s: float = 20.0, **fields: Any
) -> dict[str, str | CallError]:
    """What a fresh client in ``folder`` gets for each text: the answer's text, or the error."""

    async def one(client: Any, text: str) -> str | CallError:
        asked = question(text)
        try:
            return read_reply(await client.send(asked, deadline_s, bound=False), asked).text
        except CallError as error:
            return error

    async def everything() -> dict[str, str | CallError]:
        client = endpoint(server, **fields).open_in(folder)
        try:
            found = await asyncio.gather(*(one(client, text) for text in texts))
        finally:
            await client.close()
        return dict(zip(texts, found, strict=True))

    return asyncio.run(everything())


def answers(texts: Iterable[str]) -> dict[str, str]:
    return {text: f"answer to {text}" for text in texts}


def names(count: int) -> list[str]:
    return [f"q{number}" for number in range(count)]


def test_answers_in_any_order_find_their_requests(tmp_path: Path) -> None:
    with BatchServer([Play(polls=3)]) as server:
        assert ask(server, tmp_path, names(20)) == answers(names(20))
        assert len(server.batches) == 1
        assert set(server.paid.values()) == {1}
        batch = next(iter(server.batches.values()))
    assert batch["endpoint"] == "/v1/chat/completions"
    assert batch["completion_window"] == "24h"
    assert server.seen["deleted"] == 1, "the file of requests is not left with the provider"


def test_a_key_that_a_reply_repeats_is_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_TEST_KEY", "sk-not-to-be-seen")
    with BatchServer() as server:
        found = ask(server, tmp_path, ["sk-not-to-be-seen"], api_key_env="BATCH_TEST_KEY")
    assert list(found.values()) == ["answer to [key]"]


def test_nothing_of_the_environment_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-somebody")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-somebody")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: 1")
    with BatchServer() as server:
        assert ask(server, tmp_path, names(2)) == answers(names(2))
    allowed = {"host", "accept", "accept-encoding", "authorization", "connection", "content-length", "content-type"}
    assert {"content-type"} <= server.headers <= allowed | {"transfer-encoding"}


def test_batches_keep_to_the_limits_of_requests_and_bytes(tmp_path: Path) -> None:
    with BatchServer() as server:
        assert ask(server, tmp_path / "a", names(10), most_requests=4) == answers(names(10))
        assert len(server.batches) == 3
        texts = [f"{number}" + "x" * 1000 for number in range(4)]
        assert ask(server, tmp_path / "b", texts, most_bytes=2600) == answers(texts)
        assert len(server.batches) == 5
        refused = ask(server, tmp_path / "c", ["x" * 3000], most_bytes=2600)
    assert isinstance(refused["x" * 3000], Rejected)


def test_what_an_expired_batch_finished_is_delivered_and_the_rest_may_be_asked_again(tmp_path: Path) -> None:
    with BatchServer([Play(status="expired", answered=3)]) as server:
        first = ask(server, tmp_path, names(5))
        assert {text: first[text] for text in names(3)} == answers(names(3))
        for text in names(5)[3:]:
            error = first[text]
            assert isinstance(error, Transient)
            assert not error.maybe_paid
        # the same client's next try, and another process', go into a new batch
        assert ask(server, tmp_path, names(5)) == answers(names(5))
        assert set(server.paid.values()) == {1}
        assert len(server.batches) == 2


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_a_retry_in_the_same_process_goes_into_a_new_batch(tmp_path: Path, status: str) -> None:
    async def retried(server: BatchServer) -> str:
        client = endpoint(server).open_in(tmp_path)
        asked = question("q")
        with pytest.raises(Transient):
            await client.send(asked, 20.0, bound=False)
        body = await client.send(asked, 20.0, bound=False)
        await client.close()
        return read_reply(body, asked).text

    with BatchServer([Play(status=status, answered=0)]) as server:
        assert asyncio.run(retried(server)) == "answer to q"
        assert len(server.batches) == 2


def test_error_lines_become_typed_errors(tmp_path: Path) -> None:
    refused = {0: (400, "context_length_exceeded"), 1: (500, "server_error"), 2: (429, "rate_limit_exceeded")}
    refused |= {3: (429, "insufficient_quota"), 4: (401, "invalid_api_key")}
    with BatchServer([Play(refused=refused)]) as server:
        found = ask(server, tmp_path, names(6))
    kinds = {text: type(found[text]) for text in names(5)}
    assert kinds == {"q0": Rejected, "q1": Transient, "q2": RateLimited, "q3": Denied, "q4": Denied}
    assert found["q5"] == "answer to q5"
    assert "sk-abc" not in str(found["q4"])


def test_missing_doubled_strange_and_broken_lines(tmp_path: Path) -> None:
    with BatchServer([Play(silent={0}, twice={1}, strangers=3, garbage={2})]) as server:
        found = ask(server, tmp_path, names(4))
    missing = found["q0"]
    assert isinstance(missing, Transient)
    assert missing.maybe_paid, "a completed batch without a line may have been billed for it"
    assert found["q1"] == "answer to q1", "the first line holds"
    assert isinstance(found["q2"], InvalidReply)
    assert found["q3"] == "answer to q3"


def test_a_batch_that_fails_for_one_line_costs_the_others_nothing(tmp_path: Path) -> None:
    complaint = {"code": "invalid_json_schema", "message": "bad schema", "line": 2, "param": None}
    with BatchServer([Play(status="failed", complaints=[complaint])]) as server:
        found = ask(server, tmp_path, names(3))
        assert isinstance(found["q1"], Rejected)
        assert "bad schema" in str(found["q1"])
        assert isinstance(found["q0"], Transient)
        assert isinstance(found["q2"], Transient)
        assert not server.paid
        # a later process does not wait for the failed batch, it asks anew
        assert ask(server, tmp_path, names(3)) == answers(names(3))


@pytest.mark.parametrize(
    ("complaints", "kind"),
    [
        ([{"code": "token_limit_exceeded", "message": "enqueued token limit reached", "line": None}], RateLimited),
        ([{"code": "model_not_found", "message": "no such model", "line": None}], Denied),
        ([], Denied),
    ],
)
def test_a_batch_that_fails_as_a_whole(tmp_path: Path, complaints: list[dict[str, Any]], kind: type[CallError]) -> None:
    with BatchServer([Play(status="failed", complaints=complaints)]) as server:
        assert {type(error) for error in ask(server, tmp_path, names(2)).values()} == {kind}


def test_a_creation_that_fails_after_the_batch_was_made_is_not_made_twice(tmp_path: Path) -> None:
    made = Play(made=lambda: web.json_response({"error": {"message": "upstream"}}, status=502))
    with BatchServer([Play(), Play(), Play(), made]) as server:
        for number in range(3):  # older batches, so that the list has pages
            ask(server, tmp_path, [f"old{number}"])
        assert ask(server, tmp_path, names(3)) == answers(names(3))
        assert len(server.batches) == 4
        assert set(server.paid.values()) == {1}


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(429, "rate_limit", RateLimited), (401, "invalid_api_key", Denied), (400, "bad", Rejected), (503, "", Transient)],
)
def test_a_creation_that_is_refused(tmp_path: Path, status: int, code: str, kind: type[CallError]) -> None:
    refusal = Play(unmade=lambda: web.json_response({"error": {"message": "no", "code": code}}, status=status))
    with BatchServer([refusal]) as server:
        assert {type(error) for error in ask(server, tmp_path, names(2)).values()} == {kind}
        # and it is not looked for by the next process for ever
        assert ask(server, tmp_path, names(2)) == answers(names(2))
        assert set(server.paid.values()) == {1}


def test_a_batch_that_the_provider_has_forgotten_is_asked_again(tmp_path: Path) -> None:
    with BatchServer([Play(polls=10**6)]) as server:
        first = ask(server, tmp_path, ["q"], deadline_s=0.3)["q"]
        assert isinstance(first, Transient)
        assert first.maybe_paid
        server.batches.clear()
        lost = ask(server, tmp_path, ["q"])["q"]
        assert isinstance(lost, Transient)
        assert lost.maybe_paid, "whoever asks enters it as lost before asking again"
        assert ask(server, tmp_path, ["q"]) == answers(["q"])


def test_who_gave_up_waiting_joins_the_batch_again(tmp_path: Path) -> None:
    async def twice(server: BatchServer) -> str:
        client = endpoint(server).open_in(tmp_path)
        asked = question("q")
        with pytest.raises(Transient) as given_up:
            await client.send(asked, 0.3, bound=False)
        assert given_up.value.maybe_paid
        body = await client.send(asked, 20.0, bound=False)
        await client.close()
        return read_reply(body, asked).text

    with BatchServer([Play(polls=50)]) as server:
        assert asyncio.run(twice(server)) == "answer to q"
        assert len(server.batches) == 1


def test_equal_requests_at_once_are_one_and_other_draws_are_not(tmp_path: Path) -> None:
    async def together(server: BatchServer) -> list[str]:
        client = endpoint(server).open_in(tmp_path)
        asked = [question("q"), question("q"), question("q", sample=1)]
        found = await asyncio.gather(*(client.send(one, 20.0, bound=False) for one in asked))
        await client.close()
        return found

    with BatchServer() as server:
        assert len(set(asyncio.run(together(server)))) == 1
        assert server.paid == {"q": 2}


def test_results_that_nobody_took_wait_for_the_next_process(tmp_path: Path) -> None:
    with BatchServer() as server:
        assert ask(server, tmp_path, names(4)) == answers(names(4))
        # as after a crash before the replies were stored: all are there, none is paid again
        assert ask(server, tmp_path, names(6)) == answers(names(6))
        assert server.paid == dict.fromkeys(names(6), 1)
        assert len(server.batches) == 2
        # another run has a journal, and so a scope, of its own
        assert ask(server, tmp_path / "other", ["q0"]) == answers(["q0"])
        assert server.paid["q0"] == 2


CHILD = """
import asyncio, json, os, sys
from pathlib import Path
os.environ["BATCH_TEST_KEY"] = f"pid-{os.getpid()}"
from autointerp.llm.endpoints.openai_batch import OpenAIBatchEndpoint
from autointerp.llm.protocol import CompletionRequest, Message
from autointerp.llm.validation import read_reply

async def main():
    endpoint = OpenAIBatchEndpoint(
        model="m", base_url=sys.argv[1], api_key_env="BATCH_TEST_KEY", window_s=0.05, poll_s=0.02, most_requests=4
    )
    client = endpoint.open_in(Path(sys.argv[2]))
    asked = [CompletionRequest(messages=(Message(role="user", content=text),)) for text in json.loads(sys.argv[3])]
    bodies = await asyncio.gather(*(client.send(one, 30.0, bound=False) for one in asked))
    await client.close()
    print(json.dumps([read_reply(body, one).text for body, one in zip(bodies, asked)]))

asyncio.run(main())
"""


def run_child(server: BatchServer, folder: Path, texts: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, server.base_url, str(folder), json.dumps(texts)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)


@pytest.mark.parametrize("event", ["uploaded", "created", "polled", "downloading"])
def test_a_killed_process_batches_are_taken_over(tmp_path: Path, event: str) -> None:
    """SIGKILL in the middle of a call: before the batch exists, after it was made and before its id is known, and later."""
    texts = names(10)
    with BatchServer() as server:
        server.kill_at = event
        killed = run_child(server, tmp_path, texts)
        assert killed.returncode == -9, killed.stderr
        batches = len(server.batches)
        assert (batches > 0) == (event != "uploaded")
        done = run_child(server, tmp_path, texts)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == list(answers(texts).values())
        assert server.paid == dict.fromkeys(texts, 1), "each request is paid once"
        assert len(server.batches) == 3
    for path in tmp_path.rglob("*"):
        assert b"pid-" not in path.read_bytes(), f"the key stands in {path.name}"


def test_a_journal_outlives_torn_lines_and_several_writers(tmp_path: Path) -> None:
    path = tmp_path / "batches.jsonl"
    one, two = FileJournal(path), FileJournal(path)
    assert one.scope == two.scope != FileJournal(tmp_path / "others.jsonl").scope
    one.save(BatchRecord(token="a", state="planned", custom_ids=("x", "y"), planned_at=1.0))
    with path.open("ab") as file:
        file.write(b'\n{"batch": {"token": "a", "sta')  # killed while it wrote
    two.save(BatchRecord(token="b", state="planned", custom_ids=("z",), planned_at=2.0))
    one.save(BatchRecord(token="a", batch_id="batch_1", state="created", custom_ids=("x", "y"), planned_at=1.0))
    assert FileJournal(path).load() == [
        BatchRecord(token="a", batch_id="batch_1", state="created", custom_ids=("x", "y"), planned_at=1.0),
        BatchRecord(token="b", state="planned", custom_ids=("z",), planned_at=2.0),
    ]
    assert os.stat(path).st_mode & 0o077 == 0


def test_the_endpoint_is_configured_and_costs_half() -> None:
    table = {
        "kind": "openai_batch",
        "model": "m",
        "usd_per_million_input_tokens": 1.0,
        "usd_per_million_output_tokens": 4.0,
    }
    batch = parse_component("endpoints", table)
    usage = Usage(input_tokens=1_000_000, output_tokens=500_000)
    assert batch.cost(usage) == pytest.approx(1.5)  # type: ignore[union-attr]
    other = {**table, "window_s": 3, "poll_s": 1, "price_factor": 0.4}
    assert parse_component("endpoints", other).identity() == batch.identity()  # type: ignore[union-attr]
