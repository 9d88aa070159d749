"""Checks of this machine: an output folder that can be written and has room, and the time zones."""

from __future__ import annotations

import shutil
import tempfile
import zoneinfo
from collections.abc import Iterator
from pathlib import Path

from autointerp.operations.findings import Finding, ok, warning, wrong

LEAST_FREE_BYTES = 2 * 2**30


def check_folder(folder: Path) -> Iterator[Finding]:
    """Whether files can be written below ``folder``, which may not be there yet, and how much room there is."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        yield wrong("output folder", f"{str(folder)!r} cannot be written: {str(place)!r} is a file; give another path.")
        return
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        yield wrong(
            "output folder",
            f"{str(place)!r} cannot be written ({(error.strerror or str(error)).lower()}): give its user the right, or another path.",
        )
        return
    yield ok("output folder", f"{str(place)!r} can be written.")
    free = shutil.disk_usage(place).free
    said = f"{free / 2**30:.1f} GiB are free at {str(place)!r}"
    yield (
        ok("disk", f"{said}.")
        if free >= LEAST_FREE_BYTES
        else wrong("disk", f"{said}: make room, or give another path.")
    )


def check_time_zones() -> Iterator[Finding]:
    """Whether nightly schedules can name a time zone."""
    if zoneinfo.available_timezones():
        yield ok("time zones", "they are known.")
    else:
        yield warning(
            "time zones",
            "this machine has no time zone data, so that a nightly schedule can be in UTC only: pip install tzdata.",
        )
