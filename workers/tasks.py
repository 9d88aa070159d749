"""The tasks. What they do is in autointerp.cluster and autointerp.nightly."""

from __future__ import annotations

from celery import shared_task
from kombu.exceptions import OperationalError as BrokerDown

from workers.configuration import LOOKS
from workers.process import this_process


@shared_task(name="workers.tasks.work")
def work(queue: str) -> None:
    """Do chunks of a queue for a turn; then tell the queue if there is more, or the reconciler that all is done here."""
    process = this_process()
    turn = process.worker.turn(queue)
    # messages that ask for it have waited behind this turn, where there is one process for everything
    process.look_if_due()
    try:
        if turn.more:
            work.apply_async((queue,), queue=queue, time_limit=process.settings.worker.turn_limit_s(queue))
        elif turn.done:
            reconcile.apply_async(queue=LOOKS, expires=10)
    except BrokerDown:
        return  # the reconciler looks at the store anyway


@shared_task(name="workers.tasks.reconcile")
def reconcile() -> None:
    """Look at all runs."""
    this_process().look()


@shared_task(name="workers.tasks.nightly_tick")
def nightly_tick() -> None:
    """Begin and settle the nights that are due."""
    this_process().tick_nights()
