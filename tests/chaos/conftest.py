"""Fixtures of the experiments, and the record from which docs/chaos.md is made."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster_world import Bases, Cluster, open_cluster
from tests.servers import RedisServer

RECORD = "CHAOS_RECORD"
"""Environment variable: a file to which each experiment appends what it saw, as a JSON line."""


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Made-up dictionaries and undisturbed runs on them."""
    return Bases(tmp_path_factory.mktemp("bases"))


Experiment = Callable[..., None]


@pytest.fixture
def saw(request: pytest.FixtureRequest) -> Experiment:
    """``saw(row, what was done, **figures)``: what an experiment found, for the report."""

    def record(row: str, done: str, **figures: Any) -> None:
        line = {"row": row, "test": request.node.name, "done": done, "figures": figures}
        print("saw", json.dumps(line))
        if where := os.environ.get(RECORD):
            with Path(where).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    return record


OpenCluster = Callable[..., Cluster]


@pytest.fixture
def cluster(tmp_path: Path, bases: Bases, request: pytest.FixtureRequest) -> Iterator[OpenCluster]:
    """``cluster(latents, latency_s=..., store=..., broker=...)``: a cluster on this test's database and broker, or on those given."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def opened(latents: int = 300, *, store: str = "", broker: str = "", **settings: Any) -> Cluster:
            store = store or request.getfixturevalue("postgres_url")
            broker = broker or request.getfixturevalue("redis_url")
            folder = tmp_path / f"cluster{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            return stack.enter_context(open_cluster(folder, bases.base(latents), store, broker, **settings))

        # taken before the cluster is ended, so that the database goes last
        request.getfixturevalue("postgres_url")
        yield opened


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis that may be stopped and killed; it keeps what was written."""
    with RedisServer(appendonly=True) as server:
        yield server
