"""The broker as Celery sees it."""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from autointerp.cluster.broker import BrokerAwayError
from autointerp.cluster.settings import load_settings


class CeleryBroker:
    """Implements autointerp.cluster.broker.Broker."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def depth(self, queue: str) -> int:
        """See Broker.depth."""
        try:
            with self._app.connection_for_read() as connection:
                connection.ensure_connection(max_retries=1, timeout=5)
                declared: Any = connection.default_channel.queue_declare(queue=queue, passive=False)
                return int(declared.message_count)
        except (OperationalError, OSError) as error:
            raise BrokerAwayError(str(error)) from error

    def hint(self, queue: str, count: int = 1) -> None:
        """See Broker.hint."""
        work, limit_s = self._app.tasks["workers.tasks.work"], load_settings().worker.turn_limit_s(queue)
        try:
            for _ in range(count):
                work.apply_async((queue,), queue=queue, retry=False, time_limit=limit_s)
        except (OperationalError, OSError) as error:
            raise BrokerAwayError(str(error)) from error
