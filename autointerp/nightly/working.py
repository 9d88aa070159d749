"""Does the nights' runs in this process, where no cluster does."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from autointerp.nightly.book import nights, schedules
from autointerp.nightly.ticking import BY_HAND, NightEvent, tick
from autointerp.pipeline.driver import Display, LocalDriver
from autointerp.pipeline.interruption import Interrupted, Stopped
from autointerp.pipeline.stages import STAGES
from autointerp.pipeline.starting import open_run
from autointerp.store import LabelStore
from autointerp.store.models import NightRow
from sae_core.errors import AutointerpError

_LOCK = ".working"
"""File in a night's folder that is locked while a process does its run."""


class _NightDriver(LocalDriver):
    """Stops when the night's window ends."""

    over: Callable[[], bool] = staticmethod(lambda: False)

    def _cause_to_stop(self) -> Stopped | None:
        return super()._cause_to_stop() or (Stopped() if self.over() else None)


def tick_and_work(store: LabelStore, clock: Callable[[], datetime], display: Display) -> list[NightEvent]:
    """A beat, then the runs of all nights that have begun, then the beats that settle them. Errors: Interrupted."""
    events = tick(store, clock(), submitted=False)
    for kept in schedules(store):
        for night in nights(store, kept.name, "running"):
            events += _work(store, night, clock, display)
    return events + tick(store, clock(), submitted=False)


def _work(store: LabelStore, night: NightRow, clock: Callable[[], datetime], display: Display) -> list[NightEvent]:
    assert night.run_id is not None, "a night that runs has a run"
    run = store.run(night.run_id)
    by_hand = run.state == "paused" and run.state_note == BY_HAND
    if clock() >= night.ends_at or by_hand or run.state not in ("running", "paused"):
        return []
    driver = _NightDriver(open_run(store, night.run_id), STAGES, display)
    driver.over = lambda: clock() >= night.ends_at
    try:
        with _alone(Path(run.folder)) as alone:
            if alone:
                driver.run()
    except Interrupted:
        raise
    except Stopped:
        pass  # the window is over: the next beat ends the run and settles the night
    except AutointerpError as error:
        # a later beat goes on where a server was away, and settles what a budget ended
        store.set_run_state(night.run_id, "paused", str(error), unless=("failed", "cancelled", "done"))
        return [NightEvent(night.schedule, night.date, "error", night.run_id, str(error))]
    return []


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether no other process does the run in a folder: cron calls again while the call before is still at it.

    The lock goes with its process. Where a file system has none, chunks' leases still keep two processes from doing one twice.
    """
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
    finally:
        os.close(handle)
