"""Files and folders that are there whole or not at all, whenever the process is killed.

A writer works under a temporary name in the same folder, syncs it to disk and renames it. Temporary names say which
process made them, so that what a dead one left is swept at the next start.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from autointerp.pipeline.owner import Owner, is_dead
from sae_core.errors import DiskFullError

_TEMPORARY = re.compile(r"\..+\.tmp~(?P<owner>.+)~[0-9a-f]{8}")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
"""What file systems without hard links answer."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path to write a file at; it becomes ``path`` when the block ends without an error.

    Errors: DiskFullError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        with disk_full(path):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def create_once(path: Path, text: str) -> bool:
    """Write a file that is not there yet, whole; False, and nothing changed, where another process was quicker.

    Errors: DiskFullError.
    """
    temporary = _temporary_name(path)
    try:
        with disk_full(path):
            temporary.write_text(text, encoding="utf-8")
            sync(temporary)
            try:
                os.link(temporary, path)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with path.open("x", encoding="utf-8") as file:  # as exclusive, but a kill right here leaves it empty
                    file.write(text)
            sync(path.parent)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


@contextmanager
def disk_full(path: Path) -> Iterator[None]:
    """Turn "no space left" into a DiskFullError that names ``path``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors writes from Rust, whose errors carry the number in their text
        no_room = error.errno in _NO_ROOM if isinstance(error, OSError) else f"os error {errno.ENOSPC}" in str(error)
        if not no_room or isinstance(error, DiskFullError):
            raise
        free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
        raise DiskFullError(
            f"no room left to write {str(path)!r} ({free / 2**20:,.0f} MiB free): free some space on that disk and run the "
            "same command again, it goes on from here."
        ) from error


def sweep(folder: Path) -> int:
    """Remove what dead processes of this host left half-written below ``folder``; returns how many things."""
    swept = 0
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            match = _TEMPORARY.fullmatch(name)
            if match is None or not is_dead(match["owner"]):
                continue
            leftover = Path(place, name)
            if name in folders:
                folders.remove(name)
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
            swept += 1
    return swept


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp~{Owner.of_this_process()}~{uuid.uuid4().hex[:8]}")


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
