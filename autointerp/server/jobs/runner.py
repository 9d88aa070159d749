"""The thread that works jobs off: one run and one export at a time, each in a child process that ends with the server."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from autointerp.pipeline.owner import Owner, is_dead
from autointerp.server.jobs.rows import JobKind, change, claim_next, job, jobs
from autointerp.store import LabelStore
from autointerp.store.models import JobRow
from sae_core.errors import AutointerpError

_LOG = logging.getLogger(__name__)
_KINDS: tuple[JobKind, ...] = ("run", "export")
_LOOK_S, _IDLE_S = 0.2, 2.0
"""Pauses between two looks at the rows, with a child under way and without."""
_GRACE_S = 15.0
"""Time that children have to put their work in order when the server ends; what is left of them then loses a chunk at most."""


class JobRunner:
    """Does the queued jobs whose folders are below ``home``."""

    def __init__(self, store: LabelStore, url: str, home: Path) -> None:
        """``store``: that of the rows; ``url``: the same for children."""
        self._store, self._url, self._home = store, url, home
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._changed, self._ends = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)

    def start(self) -> None:
        """Begin, with what an earlier server left."""
        self._thread.start()

    def wake(self) -> None:
        """Look at the rows at once: something has come."""
        self._changed.set()

    def stop(self) -> None:
        """Have children put their work in order; their jobs are queued for the next server."""
        self._ends.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(_GRACE_S + 5)

    def log_of(self, job_id: str) -> Path:
        """Where a job's child writes what it has to say."""
        return self._home / ".server" / "jobs" / f"{job_id}.log"

    def _work(self) -> None:
        while not self._ends.is_set():
            try:
                self._look()
            except (AutointerpError, SQLAlchemyError, OSError):
                _LOG.exception("the jobs could not be looked at; the next look is in %.0f s", _IDLE_S)
                self._changed.clear()
                self._changed.wait(_IDLE_S)
                continue
            self._changed.wait(_LOOK_S if self._children else _IDLE_S)
            self._changed.clear()
        self._end_children()

    def _look(self) -> None:
        """One look: what has ended, what somebody wants, what comes next."""
        below = f"{self._home}{os.sep}"
        running = JobRow.folder.startswith(below, autoescape=True)
        for row in jobs(self._store, JobRow.state == "running", running):
            child = self._children.get(row.id)
            if child is not None and child.poll() is not None:
                self._settle(row, child.returncode)
            elif child is None and is_dead(row.process):
                self._settle(row, None)
            elif row.wanted is not None:
                self._halt(row)
        for job_id in [job_id for job_id, child in self._children.items() if child.poll() is not None]:
            self._forget(job_id)
        for kind in _KINDS:
            row_or_none = claim_next(self._store, kind, below, str(Owner.of_this_process()))
            if row_or_none is not None:
                self._begin(row_or_none)

    def _begin(self, row: JobRow) -> None:
        log = self.log_of(row.id)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as out:
                child = subprocess.Popen(
                    [sys.executable, "-m", "autointerp.server.jobs.child"],
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,  # Ctrl-C is the server's, which tells its children itself
                )
        except OSError as error:
            said = f"no process could be started for it ({error.strerror or error}): mend that, then retry it."
            change(self._store, row.id, was=("running",), state="failed", error=said, error_kind=type(error).__name__)
            return
        self._children[row.id] = child
        owner = Owner.of_process(child.pid)
        change(self._store, row.id, was=("running",), process=str(owner))
        assert child.stdin is not None
        with suppress(BrokenPipeError):  # it has died at once, which the next look sees
            child.stdin.write(json.dumps({"store": self._url, "job_id": row.id}).encode() + b"\n")
            child.stdin.flush()  # and stays open: its end tells the child that the server has gone

    def _halt(self, row: JobRow) -> None:
        """Say again what is wanted: a run that was just starting may not have heard it."""
        if row.run_id is not None and row.kind == "run":
            # also where the driver has just begun, which makes the run a running one
            note, ends = f"{row.wanted} by hand", ("cancelled", "done", "failed", str(row.wanted))
            self._store.set_run_state(row.run_id, str(row.wanted), note, unless=ends)
        elif row.id in self._children:
            self._children[row.id].terminate()

    def _settle(self, row: JobRow, code: int | None) -> None:
        """Write down how a job ended whose process could not; ``code`` is None for a child of a server before this one."""
        fresh = job(self._store, row.id)
        if fresh.state != "running":
            return
        if fresh.wanted is not None:
            change(self._store, row.id, was=("running",), state=fresh.wanted, wanted=None)
            if fresh.run_id is not None and row.kind == "run":
                self._store.set_run_state(fresh.run_id, fresh.wanted, f"{fresh.wanted} by hand", unless=("done",))
        elif code is None or self._ends.is_set():
            change(self._store, row.id, was=("running",), state="queued")
        else:
            how = f"by signal {-code}" if code < 0 else f"with status {code}"
            said = (
                f"its process ended {how} and did not say why (out of memory, perhaps): the file {self.log_of(row.id).name} in the folder "
                ".server/jobs of the server's home has what it wrote; retried, it goes on from where it was."
            )
            change(self._store, row.id, was=("running",), state="failed", error=said, error_kind="ProcessEndedError")
            if fresh.run_id is not None and row.kind == "run":
                self._store.set_run_state(fresh.run_id, "failed", said, unless=("paused", "cancelled", "done"))

    def _forget(self, job_id: str) -> None:
        child = self._children.pop(job_id)
        child.wait()
        if child.stdin is not None:
            child.stdin.close()

    def _end_children(self) -> None:
        for child in self._children.values():
            child.terminate()
        last = time.monotonic() + _GRACE_S
        for job_id, child in list(self._children.items()):
            try:
                child.wait(max(0.0, last - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue
            try:
                self._settle(job(self._store, job_id), child.returncode)
            except (AutointerpError, SQLAlchemyError):
                _LOG.exception("the end of job %s could not be written; the next server finds it", job_id)
            self._forget(job_id)
