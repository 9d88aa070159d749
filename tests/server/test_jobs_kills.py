"""What becomes of jobs when the server, or the process of a run, is killed, and when somebody pauses or cancels them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import autointerp
from autointerp.client import Client
from autointerp.store import ChunkState, open_store
from autointerp.store.opening import sqlite_url
from sae_core.errors import StoreError
from tests.planted_world import NUM_LATENTS
from tests.server.job_world import Server, fill, wait_until

pytestmark = pytest.mark.long


@pytest.fixture
def home(tmp_path: Path) -> Path:
    fill(tmp_path / "home", tmp_path / "world")
    return tmp_path / "home"


def under_way(client: Client, job_id: str) -> str:
    """Id of the run, once it is at its interventions."""

    def begun() -> str | None:
        run_id = client.job(job_id).run_id
        if run_id is None:
            assert client.job(job_id).state in ("queued", "running"), client.job(job_id).error
            return None
        stages = client.progress(run_id).stages
        at_it = [stage for stage in stages if stage.name == "intervene" and 0 < stage.done < stage.total]
        return run_id if at_it else None

    found: str = wait_until(begun, "the run is at its interventions")
    return found


def whole(client: Client, run_id: str, folder: Path) -> Any:
    """The dictionary, of which every latent is there once."""
    table = autointerp.load_dictionary(str(client.download(run_id, folder))).set_index("latent")
    assert sorted(table.index) == list(range(NUM_LATENTS))
    return table


def done_chunks(home: Path, run_id: str) -> dict[tuple[str, str, int], int]:
    """Attempts of each chunk that is done."""
    store = open_store(sqlite_url(home / "autointerp.db"))
    try:
        chunks = store.chunks(run_id, ChunkState.DONE)
        return {(chunk.stage, chunk.source, chunk.ordinal): chunk.fence for chunk in chunks}
    finally:
        store.close()


def test_a_server_that_is_killed_leaves_a_run_that_the_next_one_goes_on_with(home: Path, tmp_path: Path) -> None:
    with Server(home) as first:
        job = first.client.start(["slow"], "words")
        behind = first.client.start(["planted"], "words", latents="3")
        run_id = under_way(first.client, job.job_id)
        children = first.children()
        before = done_chunks(home, run_id)
        first.end(signal.SIGKILL)
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in children), "its children have ended too", 30)
    store = open_store(sqlite_url(home / "autointerp.db"))
    assert store.run_state(run_id) == "running", "it has not gone on alone to its end"
    store.close()
    with Server(home) as second:
        ended = second.client.wait(second.client.job(job.job_id), limit_s=200)
        assert (ended.run_id, ended.state) == (run_id, "done")
        whole(second.client, run_id, tmp_path / "dictionary")
        after = done_chunks(home, run_id)
        assert before.items() <= after.items(), "what was done is not done again"
        assert second.client.wait(behind, limit_s=100).state == "done", "what waited is done too"


def test_a_server_that_is_stopped_has_its_run_put_in_order_and_takes_it_up(home: Path) -> None:
    with Server(home) as first:
        job = first.client.start(["slow"], "words")
        run_id = under_way(first.client, job.job_id)
        children = first.children()
    assert not any(psutil.pid_exists(pid) for pid in children), "none is left behind"
    store = open_store(sqlite_url(home / "autointerp.db"))
    assert not store.chunks(run_id, ChunkState.RUNNING), "no lease is left"
    store.close()
    with Server(home) as second:
        assert second.client.wait(second.client.job(job.job_id), limit_s=200).state == "done"


def test_pause_resume_cancel(home: Path, tmp_path: Path) -> None:
    with Server(home) as server:
        client = server.client
        job = client.start(["slow"], "words")
        run_id = under_way(client, job.job_id)
        assert client.pause(run_id).state == "paused"
        wait_until(lambda: client.job(job.job_id).state == "paused" and not server.children(), "its process ends", 30)
        so_far = done_chunks(home, run_id)
        time.sleep(2)
        assert done_chunks(home, run_id) == so_far
        with pytest.raises(StoreError, match="paused"):
            client.retry(run_id)
        resumed = client.resume(run_id)
        assert resumed.job is not None
        with pytest.raises(StoreError, match="cannot be resumed"):
            client.resume(run_id)
        wait_until(lambda: client.progress(run_id).state == "running", "it goes on")
        assert client.cancel(run_id).state == "cancelled"
        wait_until(lambda: client.job(job.job_id).state == "cancelled" and not server.children(), "it ends", 30)
        client.resume(run_id)
        assert client.wait(client.job(job.job_id), limit_s=200).state == "done"
        assert so_far.items() <= done_chunks(home, run_id).items()
        whole(client, run_id, tmp_path / "dictionary")
        with pytest.raises(StoreError, match="done"):
            client.cancel(run_id)
        with pytest.raises(StoreError, match="nothing"):
            client.retry(run_id)


def test_a_process_that_dies_is_said_and_its_run_goes_on(home: Path) -> None:
    with Server(home) as server:
        client = server.client
        job = client.start(["slow"], "words")
        run_id = under_way(client, job.job_id)
        (child,) = server.children()
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: client.job(job.job_id).state == "failed", "it is seen", 30)
        found = client.job(job.job_id)
        assert (found.error_kind, found.run_id) == ("ProcessEndedError", run_id)
        assert "signal 9" in (found.error or "")
        assert client.progress(run_id).state == "failed"
        client.resume(run_id)
        assert client.wait(client.job(job.job_id), limit_s=200).state == "done"


def test_what_is_cancelled_before_its_turn_never_begins(home: Path) -> None:
    with Server(home) as server:
        client = server.client
        first = client.start(["slow"], "words")
        second = client.start(["planted"], "words")
        assert client.job(second.job_id).before >= 0
        assert client.cancel_job(second.job_id).state == "cancelled"
        client.cancel_job(first.job_id)
        wait_until(lambda: client.job(first.job_id).state == "cancelled", "also while it is being checked", 60)
        assert client.retry_job(second.job_id).state in ("queued", "running")
        assert client.wait(client.job(second.job_id), limit_s=100).state == "done"
