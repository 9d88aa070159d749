"""A worker without Celery: one process, one thread, no broker. What it does comes in the same order every time."""

from __future__ import annotations

import time

from autointerp.cluster.reconciling import ClusterReconciler
from autointerp.cluster.settings import load_settings
from autointerp.cluster.working import QueueWorker
from autointerp.store import open_store

QUEUES = ("gpu", "llm", "export", "control")


class _NoBroker:
    def depth(self, queue: str) -> int:
        return 0

    def hint(self, queue: str, count: int = 1) -> None:
        pass


def work() -> None:
    """Work on all runs until none is running."""
    settings = load_settings()
    store = open_store(settings.store_url)
    worker, reconciler = QueueWorker(store, settings.worker), ClusterReconciler(store, _NoBroker(), settings.worker)
    while any(run.state == "running" for run in store.runs()):
        reconciler.look()
        if sum(worker.turn(queue).done for queue in QUEUES) == 0:
            time.sleep(0.05)
    worker.close()
    reconciler.close()
    store.close()
