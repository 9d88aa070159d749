"""Runs on the planted world, to the exemplar stores, in which the text comes slowly: its reader waits for the first shard.

python -m tests.autointerp.growing_world CONFIG OUT GO: only tokenizes, from when the file GO is there, and is killed (SIGKILL)
once the first shard is extracted.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from autointerp.config import load_config
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.driver import Display, LocalDriver
from autointerp.pipeline.execution import execute
from autointerp.pipeline.reconciler import Reconciler
from autointerp.pipeline.stages import STAGES
from autointerp.pipeline.starting import start_run
from autointerp.progress import SilentDisplay
from sae_core.readers import jsonl

CONFIG = """
[subject]
model = "subject"
[[coders]]
path = "coder"
[corpus]
path = "corpus.jsonl"
[extraction]
num_tokens = 6000
context_length = 64
window_length = 16
shard_tokens = 1500
pool_windows = 40
[controls]
random_directions = 4
[[explainers]]
kind = "pattern"
[[scorers]]
kind = "pattern"
"""
TO_STORES = STAGES[:4]
MIDDLE = 45
"""A document of the third shard."""
_PATIENCE_S = 60.0


@contextmanager
def small_steps() -> Iterator[pytest.MonkeyPatch]:
    """The corpus grows on disk a few documents at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sae_core.tokens._TOGETHER_DOCUMENTS", 4)
        patch.setattr("sae_core.corpus_writer.JOURNAL_TOKENS", 200)
        yield patch


@contextmanager
def waiting_reader(
    out: Path, then: Callable[[], None] = lambda: None, first: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """The reader calls ``first``, comes to the middle of the text, waits until a shard is extracted, calls ``then`` and goes on."""
    read = jsonl.read

    def slow(*given: Any) -> Iterator[Any]:
        first()
        for number, document in enumerate(read(*given)):
            if number == MIDDLE:
                wait_for(lambda: chunks_of(out, "extract", "done") > 0)
                then()
            yield document

    with small_steps() as patch:
        patch.setattr(jsonl, "read", slow)
        yield


def chunks_of(out: Path, stage: str, state: str) -> int:
    """Chunks of a stage in a state."""
    with closing(sqlite3.connect(out / "autointerp.db", timeout=20)) as connection:
        query = "SELECT count(*) FROM chunk WHERE stage = ? AND state = ?"
        return int(connection.execute(query, (stage, state)).fetchone()[0])


def first_partial(out: Path) -> Path:
    return out / "sources" / "coder" / "partials" / "000000.safetensors"


def wait_for(what: Callable[[], bool]) -> None:
    """Errors: TimeoutError."""
    until = time.monotonic() + _PATIENCE_S
    while not what():
        if time.monotonic() > until:
            raise TimeoutError("nothing came while the text was read")
        time.sleep(0.01)


def run(config: Path, out: Path, *sets: str, display: Display | None = None) -> RunContext:
    """Begin the run, or go on with it, up to its exemplar stores."""
    context = start_run(load_config(config, sets), "x", out).context
    LocalDriver(context, TO_STORES, display or SilentDisplay()).run()
    return context


def stores(out: Path) -> dict[str, bytes]:
    """The content of the files of all exemplar stores."""
    places = sorted((out / "sources").glob("*/exemplars/*"))
    return {str(path.relative_to(out)): path.read_bytes() for path in places}


def main(config: Path, out: Path, go: Path) -> None:
    """Do the tokenize chunk, and nothing else."""
    context = start_run(load_config(config, []), "x", out).context
    Reconciler(context, TO_STORES).release()
    (chunk,) = (chunk for chunk in context.store.chunks(context.run_id) if chunk.stage == "tokenize")
    with waiting_reader(out, lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: wait_for(go.exists)):
        execute(chunk.id, context, TO_STORES)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
