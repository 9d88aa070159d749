"""One asker of a run's language models at a time in the server: its calls are booked under the process's name, in which two would settle
each other's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

from sae_core.errors import StoreError

_PATIENCE_S = 10.0
"""Longest that a request waits for another one's: it holds one of the server's few threads."""


class _Turn:
    """A run's lock, which is gone when nobody holds it or waits."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


_TURNS: WeakValueDictionary[str, _Turn] = WeakValueDictionary()
_MAKING = threading.Lock()


@contextmanager
def asking_alone(run_id: str, patience_s: float = _PATIENCE_S) -> Iterator[None]:
    """Hold the run's turn. Errors: StoreError where another request has it all the time; nothing was done then."""
    with _MAKING:
        turn = _TURNS.get(run_id)
        if turn is None:
            turn = _TURNS[run_id] = _Turn()
    if not turn.lock.acquire(timeout=patience_s):
        raise StoreError(
            "a language model is writing or judging another label of this run: nothing was done; try again in a moment."
        )
    try:
        yield
    finally:
        turn.lock.release()
