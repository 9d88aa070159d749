"""Tells the store every few seconds that this process is there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from autointerp.pipeline.owner import Owner
from autointerp.store import LabelStore
from sae_core.errors import AutointerpError

_LOG = logging.getLogger(__name__)
_BEAT_S = 5.0


class Presence:
    """A thread that keeps the process's row in ``worker`` young, for as long as it is open.

    ``store`` opens the store, or raises as long as it is not there: a process may begin before it.
    """

    def __init__(self, store: Callable[[], LabelStore], name: str, queues: Sequence[str]) -> None:
        self._store, self._name, self._queues = store, name, list(queues)
        self._owner = str(Owner.of_this_process())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="presence", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Take the row away."""
        self._ended.set()
        self._thread.join(_BEAT_S)
        with suppress(AutointerpError):
            self._store().disappear(self._owner)

    def _beat(self) -> None:
        import psutil

        from autointerp.pipeline.code_version import code_version

        process, version = psutil.Process(), code_version()
        while True:
            try:
                rss = process.memory_info().rss
                self._store().appear(self._owner, self._name, self._queues, version, rss)
            except AutointerpError as error:
                _LOG.warning("the store does not hear this process: %s", error)
            if self._ended.wait(_BEAT_S):
                return
