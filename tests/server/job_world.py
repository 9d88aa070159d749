"""A server in a process of its own beside the planted world, whose runs take seconds, and hands to ask it and to kill it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from autointerp.client import Client
from autointerp.server.catalogue import Catalogue, corpus_entry, source_entry
from autointerp.store import open_store
from autointerp.store.opening import sqlite_url
from tests import planted_world

ROOT = Path(__file__).parents[2]
RUN = {
    "seed": 0,
    "extraction": {"num_tokens": 15_000, "context_length": 64, "window_length": 16},
    "controls": {"random_directions": 4},
    "explainers": [{"kind": "pattern"}],
    "scorers": [{"kind": "pattern", "skip_repeated": False}],
}
SLOW = RUN | {
    "chunk_latents": 1,
    "scorers": [
        {"kind": "pattern", "skip_repeated": False},
        {
            "kind": "intervention",
            "windows": 20,
            "control_directions": 64,
            "steered_latents": 16,
            "steering_prompts": 16,
        },
    ],
}
"""The same with so much to do that there is time to stop it on the way: chunks of one latent."""


def fill(home: Path, world: Path) -> None:
    """Put the planted world into a home's catalogue: the sources ``planted`` and ``slow``, one whose coder is none, the corpus ``words``."""
    home.mkdir(parents=True, exist_ok=True)
    if not (world / "subject").is_dir():
        planted_world.build(world)
    (world / "nothing").mkdir(exist_ok=True)
    store = open_store(sqlite_url(home / "autointerp.db"))
    catalogue = Catalogue(store)
    for name, coder, rest in (("planted", "coder", RUN), ("slow", "coder", SLOW), ("broken", "nothing", RUN)):
        tables = {**rest, "subject": {"model": "subject"}, "coders": [{"path": coder, "name": "planted"}]}
        catalogue.add(source_entry(name, tables, world, "the test"))
    catalogue.add(corpus_entry("words", {"path": "corpus.jsonl"}, world, "the test"))
    store.close()


class Server:
    """``autointerp serve`` as a process."""

    def __init__(self, home: Path) -> None:
        self.home = home
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "autointerp.cli", "serve", "--home", str(home), "--port", "0"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+/", line)
        assert found, line + self.process.stdout.read()
        self.client = Client(found[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.end(signal.SIGTERM)

    def end(self, number: int) -> None:
        """Send it a signal and wait until it has gone."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def children(self) -> list[int]:
        """Processes that it started."""
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        return []


def wait_until(holds: Callable[[], Any], what: str, limit_s: float = 120.0) -> Any:
    """What ``holds`` says once it is true."""
    last = time.monotonic() + limit_s
    while time.monotonic() < last:
        if found := holds():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not in {limit_s:.0f} s: {what}")


def jobs_of_kind(client: Client, kind: str = "run") -> Iterator[Any]:
    """Its jobs of a kind."""
    return (job for job in client.jobs() if job.kind == kind)
