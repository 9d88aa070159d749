"""For every test: no network but this machine, one thread for numerical libraries, fixed hypothesis settings."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.cli_process import start_server
from tests.servers import PostgresServer, RedisServer

if TYPE_CHECKING:
    from autointerp.store import LabelStore

# two test processes share two cores; set before numpy or torch start their pools
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_CACHE = tempfile.TemporaryDirectory(prefix="autointerp-test-cache-")
os.environ["AUTOINTERP_CACHE"] = _CACHE.name  # never the user's own; gone with this process

settings.register_profile(
    "autointerp",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("autointerp")


def pytest_configure(config: pytest.Config) -> None:
    """Several test processes share one that has imported everything (``tests/cli_process.py``)."""
    if getattr(config.option, "numprocesses", None):
        start_server(share=True)


_LOOPBACK = ("127.", "::1", "localhost")


class NetworkUsedError(RuntimeError):
    """A test reached for the network."""


@pytest.fixture(autouse=True)
def network_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections and name look-ups beyond this machine raise; unix sockets and loopback work."""
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def allowed(family: int, address: Any) -> bool:
        return family == socket.AF_UNIX or (isinstance(address, tuple) and str(address[0]).startswith(_LOOPBACK))

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if not allowed(self.family, address):
            raise NetworkUsedError(f"a test connects to {address!r}; tests run with the network off")
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        if not allowed(self.family, address):
            raise NetworkUsedError(f"a test connects to {address!r}; tests run with the network off")
        return connect_ex(self, address)

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host is not None and not str(host).startswith(_LOOPBACK):
            raise NetworkUsedError(f"a test looks up {host!r}; tests run with the network off")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)


_REDIS_DATABASES = 16
_redis_turn = count()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis of this test process. Who kills or stops it starts it again, or rather takes a RedisServer of their own."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of an empty Redis database."""
    number = next(_redis_turn) % _REDIS_DATABASES
    with redis_server.client(number) as client:
        client.flushdb()
    return redis_server.database_url(number)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL of this test process. Who kills or stops it takes a PostgresServer of their own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """SQLAlchemy URL of an empty PostgreSQL database."""
    url = postgres_server.new_database()
    yield url
    postgres_server.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a store that is not made yet: the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'a.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def label_store(store_url: str) -> Iterator[LabelStore]:
    """An empty store, once of each kind."""
    from autointerp.store import open_store

    store = open_store(store_url)
    yield store
    store.close()
