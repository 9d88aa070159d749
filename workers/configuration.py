"""Celery's settings, each with its reason.

A message says that a queue has something and nothing else; what is to be done, by whom and how often stands in the store. So there
are no results, no retries, no redelivery, no visibility timeout to tune: a message that is lost or doubled does no harm.
"""

from __future__ import annotations

from celery import Celery
from kombu import Queue
from kombu.transport.redis import Channel

from autointerp.cluster.settings import load_settings

QUEUES = ("gpu", "llm", "export", "control")
LOOKS = "reconcile"
"""Queue of the words to look at all runs, heard by all who serve ``control``: among its hints they would be taken for hints."""
_TICK_S = 60.0


def make_app() -> Celery:
    """The application of this environment. Errors: ConfigError."""
    settings = load_settings()
    # a hint that a worker has not begun with when it loses the broker is gone, and the reconciler gives another one: to put it back
    # kombu asks the broker that is away, and where the connection is half closed already that ends the whole worker (AttributeError)
    Channel.do_restore = False
    app = Celery("autointerp", broker=settings.broker_url, include=["workers.tasks"])
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],  # never pickle: whoever writes to the broker must not run code
        task_ignore_result=True,  # and no result backend
        task_acks_late=False,  # a hint is used up when it is heard; the reconciler gives new ones
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
        worker_enable_remote_control=True,
        task_time_limit=settings.worker.turn_limit_s("control"),  # hints have that of their queue
        task_default_queue="control",
        task_queues=[Queue(name) for name in (*QUEUES, LOOKS)],
        task_create_missing_queues=False,
        broker_transport_options={
            "global_keyprefix": settings.broker.key_prefix,
            "ack_emulation": False,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the store's lease holds the chunk, not the connection
        worker_soft_shutdown_timeout=30,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # the tick may come as often as it likes, from any number of beats: the store says which night is due
        beat_schedule={
            "nightly": {"task": "workers.tasks.nightly_tick", "schedule": _TICK_S, "options": {"expires": 600}}
        },
        beat_max_loop_interval=30,
        timezone="UTC",
    )
    return app
