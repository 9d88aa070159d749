"""Which process holds a lease, written so that another process on the same host can tell whether it still lives."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, unmistakably: process ids are used again, together with the start time they are not."""

    host: str
    """Host name and PID namespace: two containers may share a name, and then cannot see each other's processes."""
    boot: str
    """Beginning of the kernel's boot id."""
    pid: int
    started: int
    """Clock ticks from boot to the process's start (field 22 of /proc/PID/stat); 0 where there is no /proc."""

    def __str__(self) -> str:
        return f"{self.host},{self.boot},{self.pid},{self.started}"

    @classmethod
    def of_this_process(cls) -> Owner:
        """The running process."""
        return cls.of_process(os.getpid())

    @classmethod
    def of_process(cls, pid: int) -> Owner:
        """A process of this host."""
        host, boot = _this_host()
        return cls(host, boot, pid, _start_time(pid) or 0)

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """The owner that ``str`` wrote; None where the text is something else."""
        parts = text.split(",")
        if len(parts) != 4 or not (parts[2].isdecimal() and parts[3].isdecimal()):
            return None
        return cls(parts[0], parts[1], int(parts[2]), int(parts[3]))


def is_dead(text: str) -> bool:
    """Whether the owner is certainly gone. False for a process of another host: its lease must run out."""
    owner = Owner.parse(text)
    host, boot = _this_host()
    if owner is None or owner.host != host:
        return False
    if owner.boot != boot:
        return True
    if owner.started == 0:
        return not _exists(owner.pid)
    return _start_time(owner.pid) != owner.started


@cache
def _this_host() -> tuple[str, str]:
    name = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:60]
    namespace = _PROC / "self/ns/pid"
    number = re.sub(r"\D", "", os.readlink(namespace)) if namespace.is_symlink() else ""
    boot_id = _PROC / "sys/kernel/random/boot_id"
    boot = boot_id.read_text().strip()[:8] if boot_id.is_file() else "unknown"
    return f"{name}.{number}" if number else name, boot


def _start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None for a process that is not there, or only waits for its parent."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name in parentheses may hold spaces; field 3 comes next
    return None if fields[0] in "ZX" else int(fields[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
