"""The server as a process of its own, and requests to it that no client library would send."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import psutil
import uvicorn
from fastapi import FastAPI

from autointerp.server.timed_http import TimedHTTP


class RawAnswer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


@contextmanager
def served_in_thread(app: FastAPI) -> Iterator[int]:
    """The application on a port of this machine, in a thread of this process; the port."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=TimedHTTP, ws="none", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)


class RealServer:
    """``autointerp serve`` on a free port of this machine. Ended by its own id."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        code = "from autointerp.cli import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | dict(environment or {}),
        )
        assert self._process.stdout is not None
        self.said = self._process.stdout.readline()
        found = re.search(r"http://([^/]+):(\d+)/", self.said)
        assert found, self.said + self._process.stdout.read()
        self.port = int(found[2])

    def __enter__(self) -> RealServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it, and read what it logged into ``said``."""
        if self._process.poll() is None:
            self._process.terminate()
            self.said += self._process.communicate(timeout=20)[0]

    @property
    def rss_bytes(self) -> int:
        """Memory that it holds now."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def send(self, head: str, body: bytes = b"", *, host: str | None = "", timeout: float = 10) -> RawAnswer:
        """``head`` is a request line and headers, lines ended by ``\\n``; ``host`` is this server's own where it is empty, None for none."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as line:
            named = f"127.0.0.1:{self.port}" if host == "" else host
            lines = head.strip("\n").split("\n")
            if named is not None:
                lines.insert(1, f"Host: {named}")
            line.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body)
            return read_answer(line)


def read_answer(line: socket.socket) -> RawAnswer:
    """All that comes until the other side closes."""
    parts = []
    try:
        while part := line.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return parsed(b"".join(parts))


def parsed(data: bytes) -> RawAnswer:
    """An answer of one piece."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return RawAnswer(int(first.split(" ")[1]), headers, body)


def until_refused(line: socket.socket, part: bytes, most_bytes: int) -> int:
    """Send the same again and again until the other side does not take it any more; bytes that were sent."""
    sent = 0
    line.settimeout(10)
    ends = time.monotonic() + 60
    while sent < most_bytes and time.monotonic() < ends:
        try:
            line.sendall(part)
        except OSError:
            break
        sent += len(part)
    return sent


def plant(folder: Path, canary: str) -> Path:
    """A file that nobody is to be shown."""
    path = folder / "secret.txt"
    path.write_text(canary)
    return path
