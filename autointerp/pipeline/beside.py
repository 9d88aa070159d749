"""Threads in which chunks are worked beside those of the main thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Beside:
    """Does several things at once, each in a thread of its own."""

    def __init__(self) -> None:
        self._threads: dict[int, tuple[str, threading.Thread]] = {}
        self._ended = threading.Event()
        self.errors: list[tuple[str, BaseException]] = []
        """What work raised, with the name of its group, in the order of raising."""

    @property
    def busy(self) -> bool:
        """Whether any work is under way."""
        return bool(self._alive())

    def count(self, group: str) -> int:
        """How much work of a group is under way."""
        return sum(name == group for name, _ in self._alive().values())

    def holds(self, key: int) -> bool:
        """Whether the work with this key is under way."""
        return key in self._alive()

    def start(self, group: str, key: int, work: Callable[[], object]) -> None:
        """Begin ``work``; none with this key must be under way."""
        assert not self.holds(key)

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001
                self.errors.append((group, error))  # for the main thread to raise
            finally:
                self._ended.set()

        # a daemon, so that a second Ctrl-C ends the process even while a read hangs
        thread = threading.Thread(target=run, name=f"beside-{group}-{key}", daemon=True)
        self._threads[key] = (group, thread)
        thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Return when all work has ended, or, with ``seconds``, when some has or after that time."""
        if seconds is None:
            for _, thread in self._alive().values():
                thread.join()
            return
        if self.busy:
            self._ended.wait(seconds)
            self._ended.clear()
            time.sleep(0)  # let the thread that has just ended go

    def _alive(self) -> dict[int, tuple[str, threading.Thread]]:
        self._threads = {key: entry for key, entry in self._threads.items() if entry[1].is_alive()}
        return self._threads
