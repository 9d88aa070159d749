"""Put a finished folder in the place of another, so that a reader finds the old one or the new one, whole.

A new folder is built under a hidden name beside its place and locked while its maker lives. Linux swaps two
folders in one step (``renameat2`` with ``RENAME_EXCHANGE``, since 3.15); where file system or kernel cannot, the
old folder is moved aside first and comes back if the second move fails.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}


@contextmanager
def building_folder(place: Path, goes_on: Callable[[Path], bool] = lambda left: False) -> Iterator[Path]:
    """A locked, hidden sibling of ``place``; whatever is left under its name at the end is removed.

    It is fresh, or the first one that a killed maker left behind and ``goes_on`` takes. Others that were left behind beside
    ``place`` are removed. A folder whose maker still runs is not.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    taken, _ = _clear_left_behind(place, goes_on)
    while taken is None:
        building = place.parent / f".{place.name}.{secrets.token_hex(8)}.tmp"
        building.mkdir()
        handle = _lock(building, wait=True)
        if handle is not None:
            taken = building, handle
    building, handle = taken
    try:
        yield building
    finally:
        # The folder may have changed places by now: under its name stands the old dictionary, or nothing.
        shutil.rmtree(building, ignore_errors=True)
        os.close(handle)


def remove_left_behind(place: Path) -> int:
    """Remove the folders that makers of ``place`` left when they were killed; returns how many. Those whose maker lives stay.

    The next export does so too; this is for a place that gets none.
    """
    return _clear_left_behind(place, lambda left: False)[1] if place.parent.is_dir() else 0


def put_in_place(building: Path, place: Path) -> None:
    """Make ``place`` the folder that ``building`` is; afterwards ``building`` is what ``place`` was, or gone."""
    if place.exists():
        if not _exchange(building, place):
            aside = building.with_name(building.name.removesuffix(".tmp") + ".old.tmp")
            os.rename(place, aside)
            try:
                os.rename(building, place)
            except BaseException:
                os.rename(aside, place)
                raise
            shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(building, place)
    sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that the names in it outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where this system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library older than glibc 2.28
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _lock(folder: Path, wait: bool) -> int | None:
    """An open handle that holds the folder's lock (gone with the process); None if it is held, or the folder went."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        # Some network file systems lock no folders: go on without a lock of one's own, touch nobody else's.
        if not wait or error.errno == errno.EINTR:
            os.close(handle)
            return None
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(handle), os.stat(folder)):
            return handle
    os.close(handle)
    return None


def _clear_left_behind(place: Path, goes_on: Callable[[Path], bool]) -> tuple[tuple[Path, int] | None, int]:
    """Removes what killed makers left, and counts it; the first folder that is gone on with stays, with its lock's handle."""
    name = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{16}}(\.old)?\.tmp")
    taken: tuple[Path, int] | None = None
    removed = 0
    for entry in list(place.parent.iterdir()):
        if not name.fullmatch(entry.name) or not entry.is_dir() or entry.is_symlink():
            continue
        handle = _lock(entry, wait=False)
        if handle is None:
            continue
        try:
            if entry.name.endswith(".old.tmp") and not place.exists():
                os.rename(entry, place)  # its maker was killed between the two moves: this is the valid dictionary
            elif taken is None and not entry.name.endswith(".old.tmp") and goes_on(entry):
                taken = entry, handle
            else:
                shutil.rmtree(entry, ignore_errors=True)
                removed += 1
        finally:
            if taken is None or taken[1] != handle:
                os.close(handle)
    return taken, removed
