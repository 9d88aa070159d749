"""What the cluster asks of a broker."""

from __future__ import annotations

from typing import Protocol


class BrokerAwayError(Exception):
    """The broker does not answer. Nothing is lost by it: hints are given again."""


class Broker(Protocol):
    """Carries hints to the processes of a queue. Errors of all methods: BrokerAwayError."""

    def depth(self, queue: str) -> int:
        """Hints that wait in a queue."""

    def hint(self, queue: str, count: int = 1) -> None:
        """Tell the processes of a queue that it has something."""
