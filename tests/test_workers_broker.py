"""What workers do with the broker's connections, on a real Redis."""

from __future__ import annotations

from typing import Any

import pytest
import redis as redis_client
from kombu import Consumer, Queue

from tests.servers import RedisServer


def test_a_connection_that_lost_the_broker_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hint that was taken and not begun with. Where that fails Celery ends the worker, some losses of the broker later."""
    with RedisServer() as redis:
        monkeypatch.setenv("AUTOINTERP_BROKER__URL", redis.url)
        from workers.configuration import make_app

        app = make_app()
        app.send_task("workers.tasks.work", ("llm",), queue="llm")
        connection: Any = app.connection_for_read()
        channel = connection.default_channel
        taken: list[Any] = []
        Consumer(channel, [Queue("llm")], on_message=taken.append).consume()
        connection.drain_events(timeout=5)
        assert len(taken) == 1
        redis.kill()
        with pytest.raises(redis_client.ConnectionError):
            connection.drain_events(timeout=1)
        channel.close()
        connection.release()
        redis.start()
        with redis.client() as client:
            assert list(client.scan_iter("*unacked*")) == []
