"""What one worker process holds: its store, its place in the list of workers, and what it has loaded. Made after the fork, on use."""

from __future__ import annotations

import logging
import os
import threading
import time
from datetime import UTC, datetime
from functools import cached_property

from celery import current_app

from autointerp.cluster.presence import Presence
from autointerp.cluster.reconciling import ClusterReconciler
from autointerp.cluster.settings import ClusterSettings, load_settings
from autointerp.cluster.working import QueueWorker
from autointerp.nightly.ticking import tick
from autointerp.pipeline.owner import Owner
from autointerp.store import LabelStore, open_store
from workers import draining
from workers.celery_broker import CeleryBroker

_LOG = logging.getLogger(__name__)


class WorkerProcess:
    """One process. Connections do not survive a fork, so nothing of it is made before."""

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings
        self.pid = os.getpid()
        self._presence: Presence | None = None
        self._serves_control = False
        self._looked = time.monotonic()
        self._store: LabelStore | None = None
        self._opening = threading.Lock()

    @property
    def store(self) -> LabelStore:
        """The cluster's store. Errors: ConfigError, StoreError."""
        with self._opening:  # the thread that tells of this process asks for it too
            if self._store is None:
                self._store = open_store(self.settings.store_url)
            return self._store

    @cached_property
    def worker(self) -> QueueWorker:
        """What does chunks."""
        return QueueWorker(self.store, self.settings.worker, draining.is_draining)

    @cached_property
    def reconciler(self) -> ClusterReconciler:
        """What looks after runs."""
        return ClusterReconciler(self.store, CeleryBroker(current_app._get_current_object()), self.settings.worker)

    def look(self) -> None:
        """Look at all runs, where no other process is at it."""
        self.reconciler.look()
        self._looked = time.monotonic()

    def look_if_due(self) -> None:
        """Look at all runs where this process is one of those that do so and has not done it lately."""
        if self._serves_control and time.monotonic() > self._looked + self.settings.worker.reconcile_s:
            self.look()

    def tick_nights(self) -> None:
        """Begin and settle the nights that are due, where no other process is at it."""
        owner = str(Owner.of_this_process())
        if self.store.take_duty("nights", owner, 600.0):
            try:
                for event in tick(self.store, datetime.now(UTC)):
                    level = logging.ERROR if event.what == "error" else logging.WARNING if event.drift else logging.INFO
                    _LOG.log(level, "%s", event)
            finally:
                self.store.end_duty("nights", owner)

    def appear(self, name: str, queues: list[str]) -> None:
        """Show up among the workers, for as long as the process lives."""
        self._serves_control = "control" in queues
        self._presence = Presence(lambda: self.store, name, queues)
        self._presence.start()

    def close(self) -> None:
        """Close connections and leave the list."""
        if self._presence is not None:
            self._presence.stop()
        for name in ("worker", "reconciler"):
            if name in self.__dict__:
                self.__dict__[name].close()
        if self._store is not None:
            self._store.close()


_process: WorkerProcess | None = None


def this_process() -> WorkerProcess:
    """The one of this process, whichever it was forked from."""
    global _process
    if _process is None or _process.pid != os.getpid():
        _process = WorkerProcess(load_settings())
    return _process


def forget_process() -> None:
    """Close what this process holds."""
    global _process
    if _process is not None and _process.pid == os.getpid():
        _process.close()
    _process = None
