"""Has a control worker ask for a look at all runs every few seconds: no beat is needed for runs to go on."""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps
from kombu.exceptions import OperationalError

from autointerp.cluster.broker import BrokerAwayError
from autointerp.cluster.settings import load_settings
from workers.celery_broker import CeleryBroker
from workers.configuration import LOOKS

_LOG = logging.getLogger(__name__)
_MOST_WAITING = 2


class ReconcileTimer(bootsteps.StartStopStep):
    """A step of the worker's start, after its timer."""

    requires = {"celery.worker.components:Timer"}

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._entry: Any = None

    def start(self, parent: Any) -> None:
        """Begin to ask, where the worker serves the queue."""
        if "control" in parent.app.amqp.queues.consume_from:
            period_s = load_settings().worker.reconcile_s
            self._entry = parent.timer.call_repeatedly(period_s, self._ask, (parent.app, period_s))

    def stop(self, parent: Any) -> None:
        """Ask no more."""
        if self._entry is not None:
            self._entry.cancel()

    def _ask(self, app: Any, period_s: float) -> None:
        try:
            if CeleryBroker(app).depth(LOOKS) < _MOST_WAITING:  # all processes may be at work for a long time
                # one that waited longer is worth nothing any more: the next one is there
                app.tasks["workers.tasks.reconcile"].apply_async(queue=LOOKS, expires=3 * period_s, retry=False)
        except (BrokerAwayError, OperationalError, OSError) as error:
            _LOG.warning("the broker cannot be reached: %s", error)
