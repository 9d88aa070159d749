"""What happens when a worker and the processes of its pool begin and end."""

from __future__ import annotations

import logging
from typing import Any

from celery import signals

from workers import draining
from workers.configuration import LOOKS, QUEUES
from workers.process import forget_process, this_process

_name = "worker"
_queues: list[str] = []


def connect_signals() -> None:
    """Hear Celery's signals; they keep weak references, so the functions are of this module."""
    signals.setup_logging.connect(_set_up_logging)
    signals.celeryd_init.connect(_remember_name)
    signals.celeryd_after_setup.connect(_remember_queues)
    signals.worker_process_init.connect(_begin_process)
    signals.worker_process_shutdown.connect(_end_process)
    signals.worker_shutting_down.connect(_drain)


def _set_up_logging(**_: Any) -> None:
    from autointerp.cluster.settings import load_settings
    from autointerp.operations.logging import configure_logs

    configure_logs(as_json=load_settings().worker.json_logs)
    for chatter in ("celery.worker.strategy", "celery.app.trace"):  # a line for every hint
        logging.getLogger(chatter).setLevel(logging.WARNING)


def _remember_name(sender: str, **_: Any) -> None:
    global _name
    _name = str(sender)


def _remember_queues(sender: str, instance: Any, **_: Any) -> None:
    queues = instance.app.amqp.queues
    _queues[:] = sorted(set(queues.consume_from) & set(QUEUES))
    if "control" in _queues:
        queues.select_add(queues[LOOKS])


def _begin_process(**_: Any) -> None:
    this_process().appear(_name, list(_queues))


def _end_process(**_: Any) -> None:
    forget_process()


def _drain(**_: Any) -> None:
    draining.drain()
