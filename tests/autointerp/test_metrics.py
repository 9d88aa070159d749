"""What Prometheus is told, beside counts made by hand: on both databases, with the broker there and gone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import delete, insert, update

from autointerp.operations import metrics
from autointerp.operations.growing_count import GrowingCount
from autointerp.operations.metrics import METRICS, MOST_SERIES, Scraper, markdown_table, registry_of
from autointerp.store import LabelStore, open_store
from autointerp.store.calls import CallRecord, enter, open_account
from autointerp.store.models import Chunk, Duty, ExplanationRow, LabelRow, LLMCall, Run, ScoreRow
from autointerp.store.opening import sqlite_url
from autointerp.store.presence import appear, count_event, end_duty, take_duty
from tests.servers import RedisServer

ROOT = Path(__file__).parents[2]
Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LabelStore]:
    url = sqlite_url(tmp_path / "s.db") if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    opened = open_store(url)
    yield opened
    opened.close()


def add_run(store: LabelStore, run_id: str, state: str = "running") -> None:
    fields: dict[str, Any] = {
        "name": "n",
        "digest": run_id,
        "ordinal": 1,
        "config": {},
        "folder": "/x",
        "code_version": "0",
    }
    store.create_run(Run(id=run_id, state=state, **fields))


def chunk(run_id: str, queue: str, stage: str, state: str, ordinal: int) -> dict[str, Any]:
    return {
        "run_id": run_id, "stage": stage, "queue": queue, "ordinal": ordinal, "source": "", "spec": {}, "planned_units": 1,
        "state": state, "owner": "", "lease_until": 0.0, "fence": 0, "attempts": 0, "seconds": 0.0, "units": 0, "priority": 0,
        "not_before": 0.0,
    }  # fmt: skip


def call(number: int, *, body: str | None = "{}", cost: int | None = 1_500_000, endpoint: str = "judge") -> CallRecord:
    return CallRecord(f"k{number}" if body else None, endpoint, "m", "detection", "s", 1, 100, 40, 10, cost, body, 0.5)


def scrape(store: LabelStore | None, broker: Any = None, **settings: Any) -> Values:
    from prometheus_client import generate_latest

    return parsed(generate_latest(registry_of(Scraper(store, broker, **settings))).decode())


def parsed(text: str) -> Values:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labelled(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def test_what_the_database_holds_is_told(store: LabelStore) -> None:
    add_run(store, "a")
    add_run(store, "b", "paused")
    add_run(store, "c", "done")
    with store.writing() as connection:
        connection.execute(
            insert(Chunk),
            [
                *(chunk("a", "llm", "explain", "ready", n) for n in range(3)),
                chunk("a", "llm", "explain", "poisoned", 3),
                chunk("b", "gpu", "extract", "running", 0),
                chunk("c", "llm", "explain", "done", 0),
            ],
        )
        open_account(connection, "a", "me")
        enter(connection, "a", [call(1), call(2), call(3, cost=None), call(4, body=None, cost=None)])
        failed = {"failure_kind": "refused", "failure_message": "no", "source": "s", "run_id": "a"}
        connection.execute(
            insert(ScoreRow),
            [{"latent": n, "scorer": "fuzz", "explainer": "x", "values": {}, **failed} for n in range(5)],
        )
        connection.execute(
            insert(ScoreRow).values(run_id="a", source="s", latent=9, scorer="fuzz", explainer="x", values={})
        )
        explained = {
            "explainer": "x",
            "side": "input",
            "text": "",
            "payload": {},
            "exemplar_ids": [],
            "input_tokens": 0,
            "output_tokens": 0,
            "cost_usd": 0.0,
        }
        connection.execute(insert(ExplanationRow).values(latent=1, **explained, **failed))
        rows = [
            {
                "run_id": "a",
                "source": "s",
                "latent": n,
                "status": "dead" if n else "labelled",
                "text": None if n else "cats",
                "decided_by": "x",
            }
            for n in range(3)
        ]
        connection.execute(insert(LabelRow), rows)
        count_event(connection, "a", "fenced", 2)
        count_event(connection, "b", "fenced", 3)
        appear(connection, "h,b,1,2", "w1", ["llm", "control"], "0", 1000)
        appear(connection, "h,b,3,4", "w2", ["llm"], "0", 500)
        take_duty(connection, "reconcile", "x", 1)
        end_duty(connection, "reconcile", "x")
        connection.execute(update(Duty).values(until=Duty.until - 100))
    found = scrape(store)
    assert found[labelled("autointerp_database_up")] == 1
    assert {state: found[labelled("autointerp_runs", state=state)] for state in ("running", "paused", "done", "failed")} == {
        "running": 1, "paused": 1, "done": 1, "failed": 0,
    }  # fmt: skip
    chunks = {key[1]: value for key, value in found.items() if key[0] == "autointerp_chunks"}
    assert chunks == {
        labelled("", queue="llm", stage="explain", state="ready")[1]: 3,
        labelled("", queue="llm", stage="explain", state="poisoned")[1]: 1,
        labelled("", queue="gpu", stage="extract", state="running")[1]: 1,
    }
    judge = {"endpoint": "judge", "purpose": "detection"}
    assert found[labelled("autointerp_llm_calls_total", outcome="reply", **judge)] == 3
    assert found[labelled("autointerp_llm_calls_total", outcome="lost", **judge)] == 1
    tokens = {
        d: found[labelled("autointerp_llm_tokens_total", direction=d, **judge)] for d in ("input", "cached", "output")
    }
    assert tokens == {"input": 400, "cached": 160, "output": 40}
    assert found[labelled("autointerp_llm_dollars_total", **judge)] == pytest.approx(0.003)
    assert found[labelled("autointerp_llm_unpriced_calls_total", **judge)] == 2
    assert found[labelled("autointerp_llm_seconds_total", **judge)] == 2.0
    assert found[labelled("autointerp_failures_total", component="fuzz", kind="refused")] == 5
    assert found[labelled("autointerp_failures_total", component="x", kind="refused")] == 1
    assert found[labelled("autointerp_labels_total", status="dead")] == 2
    assert found[labelled("autointerp_events_total", event="fenced")] == 5
    assert found[labelled("autointerp_events_total", event="lease_expired")] == 0
    assert found[labelled("autointerp_workers", queue="llm")] == 2
    assert found[labelled("autointerp_workers", queue="gpu")] == 0
    assert found[labelled("autointerp_workers_memory_bytes")] == 1500
    assert 100 <= found[labelled("autointerp_duty_seconds_since", duty="reconcile")] < 130


def test_settled_rows_are_counted_once_and_late_ones_still_found(store: LabelStore) -> None:
    """Beside SELECT count(*), while rows arrive out of order and settled ones are taken away."""
    from sqlalchemy import func, select

    add_run(store, "a")
    count = GrowingCount(LLMCall, (LLMCall.endpoint,), (func.count(), func.sum(LLMCall.input_tokens)), unsettled=10)

    def add(*ids: int) -> None:
        row = {"run_id": "a", "endpoint": "judge", "model": "m", "purpose": "p", "source": "", "outcome": "lost"}
        row |= {"cached_tokens": 0, "output_tokens": 0, "seconds": 0.0}  # type: ignore[dict-item]
        with store.writing() as connection:
            connection.execute(insert(LLMCall), [{"id": n, "input_tokens": n, **row} for n in ids])

    def totals() -> list[float]:
        with store.reading() as connection:
            return count.totals(connection).get(("judge",), [0, 0])

    def truth() -> list[float]:
        with store.reading() as connection:
            row = connection.execute(select(func.count(), func.sum(LLMCall.input_tokens))).one()
            return [float(row[0]), float(row[1] or 0)]

    assert totals() == [0, 0]
    add(*range(1, 30), *range(31, 40))
    assert totals() == truth()
    add(*range(41, 45))
    assert totals() == truth()
    add(40)  # its transaction was slow
    assert totals() == truth()
    add(*range(45, 200))
    before = truth()
    assert totals() == before
    with store.writing() as connection:
        connection.execute(delete(LLMCall).where(LLMCall.id <= 50))
    assert totals() == before, "a counter never falls"


def test_the_broker_is_asked_and_may_be_gone() -> None:
    with RedisServer() as server, server.client(decode_responses=True, socket_timeout=2) as client:
        client.rpush("llm", *range(7))
        client.rpush("lbl:gpu", "x")
        found = scrape(None, client)
        assert found[labelled("autointerp_broker_messages", queue="llm")] == 7
        assert found[labelled("autointerp_broker_messages", queue="gpu")] == 0
        assert scrape(None, client, prefix="lbl:")[labelled("autointerp_broker_messages", queue="gpu")] == 1
        server.kill()
        assert scrape(None, client) == {
            labelled("autointerp_broker_up"): 0.0,
            labelled("autointerp_scrape_seconds"): pytest.approx(0, abs=10),
        }


def test_a_database_that_is_gone_is_said(tmp_path: Path) -> None:
    from tests.servers import PostgresServer

    with PostgresServer() as server:
        store = open_store(server.new_database())
        clock = [0.0]
        scraper = Scraper(store, None, clock=lambda: clock[0])
        assert scraper.samples()["autointerp_database_up"] == {(): 1.0}
        server.kill()
        clock[0] = 100.0
        assert scraper.samples()["autointerp_database_up"] == {(): 0.0}
        assert "autointerp_runs" not in scraper.samples()
        server.start()
        clock[0] = 200.0
        assert scraper.samples()["autointerp_database_up"] == {(): 1.0}
        store.close()


def test_many_who_ask_cost_one_reading(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    scraper = Scraper(store, None, clock=lambda: clock[0])
    readings = []
    read = metrics.StoreCounts.read
    monkeypatch.setattr(
        metrics.StoreCounts, "read", lambda self, connection: readings.append(1) or read(self, connection)
    )
    for clock[0] in (0.0, 1.0, 4.9):
        scraper.samples()
    assert len(readings) == 1
    clock[0] = 5.0
    scraper.samples()
    assert len(readings) == 2


def test_labels_are_bounded(store: LabelStore) -> None:
    add_run(store, "a")
    with store.writing() as connection:
        open_account(connection, "a", "me")
        enter(connection, "a", [call(n, endpoint=f"e{n % 300}") for n in range(900)])
    found = {key: value for key, value in scrape(store).items() if key[0] == "autointerp_llm_calls_total"}
    assert len(found) == MOST_SERIES
    assert sum(found.values()) == 900


def test_every_metric_is_documented_and_given(store: LabelStore) -> None:
    assert markdown_table() in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"autointerp_[a-z_]+", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total")
    add_run(store, "a")
    samples = Scraper(store, None)._read()
    assert samples.keys() <= {metric.name for metric in METRICS}
    missing = {metric.name for metric in METRICS} - samples.keys()
    assert {name for name in missing if "broker" not in name and "llm_" not in name} == set()


def test_the_command_serves_them(tmp_path: Path, redis_url: str) -> None:
    open_store(sqlite_url(tmp_path / "s.db")).close()
    environment = {
        **os.environ,
        "AUTOINTERP_STORE__URL": sqlite_url(tmp_path / "s.db"),
        "AUTOINTERP_BROKER__URL": redis_url,
    }
    command = [sys.executable, "-m", "autointerp.cli", "metrics", "--port", "0"]
    served = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert served.stdout is not None
        said = served.stdout.readline()
        address = said.split()[-1]
        assert address.startswith("http://127.0.0.1:"), said
        with urllib.request.urlopen(address, timeout=30) as reply:
            assert reply.headers["Content-Type"].startswith("text/plain")
            found = parsed(reply.read().decode())
        assert found[labelled("autointerp_database_up")] == found[labelled("autointerp_broker_up")] == 1
        assert not any(key[0].startswith(("python_", "process_")) for key in found)
    finally:
        served.kill()
        served.wait(10)
    done = subprocess.run(
        [*command[:-2], "--once"], env=environment, capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert labelled("autointerp_database_up") in parsed(done.stdout)


def test_a_port_that_is_taken_is_a_sentence(tmp_path: Path, redis_server: RedisServer) -> None:
    open_store(sqlite_url(tmp_path / "s.db")).close()
    command = [
        sys.executable,
        "-m",
        "autointerp.cli",
        "metrics",
        "--port",
        str(redis_server.port),
        "--store",
        str(tmp_path / "s.db"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("autointerp: metrics cannot be served")
    assert done.stderr.count("\n") == 1
