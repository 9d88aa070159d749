"""A thread in which one chunk is worked beside those of the main thread."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Beside:
    """Does one thing at a time in a thread of its own."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self.error: BaseException | None = None
        """What the last work raised."""

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], object]) -> None:
        """Begin ``work``; there must be none under way."""
        assert not self.busy

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001
                self.error = error  # for the main thread to raise

        # a daemon, so that a second Ctrl-C ends the process even while a read hangs
        self._thread = threading.Thread(target=run, name="beside", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Return when the work has ended, or after some time."""
        if self._thread is not None:
            self._thread.join(seconds)
