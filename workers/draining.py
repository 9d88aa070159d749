"""Whether the worker has been asked to end: one byte that the main process writes and the processes of its pool read.

Celery tells a pool's processes nothing of a warm shutdown; without a word they would go on to the end of their turn.
"""

from __future__ import annotations

import ctypes
import multiprocessing

_flag = multiprocessing.get_context("fork").RawValue(ctypes.c_bool, False)  # shared, since the pool is forked from here


def drain() -> None:
    """Ask the processes of this worker to give their chunks back."""
    _flag.value = True


def is_draining() -> bool:
    """Whether they were asked."""
    return bool(_flag.value)
