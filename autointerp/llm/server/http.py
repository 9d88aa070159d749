"""A small HTTP/1.1 server on asyncio streams whose handlers may put any bytes on the wire, or none, or a reset."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

MOST_HEAD_BYTES = 64 * 1024
MOST_BODY_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HTTPRequest:
    """One request, read whole."""

    method: str
    """``GET``, ``POST``, ..."""
    path: str
    """Path without the query."""
    headers: dict[str, str]
    """By their names in lower case; the last of several with one name."""
    body: bytes
    """As it was sent."""


def head(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """Status line and headers, with the empty line after them."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and the way back to the client. A handler sends what it likes."""

    request: HTTPRequest
    """What the client asked."""
    reader: asyncio.StreamReader
    """What the client sends after it."""
    writer: asyncio.StreamWriter
    """Where bytes go."""
    keep_alive: bool = True
    """Whether the connection serves another request afterwards."""

    async def send(
        self,
        status: int,
        body: bytes,
        headers: Iterable[tuple[str, str]] = (),
        content_type: str = "application/json",
    ) -> None:
        """A whole, well-formed response."""
        lines = [("Content-Type", content_type), ("Content-Length", str(len(body))), *headers]
        await self.send_raw(head(status, lines) + body)

    async def send_json(self, status: int, value: Any, headers: Iterable[tuple[str, str]] = ()) -> None:
        """A response that holds ``value`` as JSON."""
        await self.send(status, json.dumps(value).encode(), headers)

    async def send_raw(self, data: bytes) -> None:
        """Bytes as they are; waits until the client has taken most of them. Errors: ConnectionError where it is gone."""
        self.writer.write(data)
        await self.writer.drain()

    async def client_gone(self) -> None:
        """Returns when the client has closed the connection; what it still sends is thrown away."""
        self.keep_alive = False
        while await self.reader.read(65536):
            pass

    def reset(self) -> None:
        """Cut the connection with a TCP reset, as a process that is killed does."""
        self.keep_alive = False
        reset(self.writer)


def reset(writer: asyncio.StreamWriter) -> None:
    """Cut a connection with a TCP reset; unsent bytes are lost."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


Handler = Callable[[Exchange], Awaitable[None]]
"""What answers; it may raise ConnectionError where the client goes."""


@dataclass(slots=True, eq=False)
class HTTPServer:
    """Serves a handler on 127.0.0.1 (or another address) with keep-alive."""

    handler: Handler
    """What answers."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 0
    """Port to listen on; 0 for any, and then the one that was found."""
    errors: list[BaseException] = field(default_factory=list)
    """What handlers raised: faults of the server itself, which its owner must look at."""
    listening: asyncio.Server | None = None
    """The listening sockets, once started."""
    _open: dict[asyncio.Task[None], asyncio.StreamWriter] = field(default_factory=dict)

    async def start(self) -> None:
        """Listen. Errors: OSError where the port is taken."""
        self.listening = await asyncio.start_server(
            self._connected, self.host, self.port, limit=MOST_HEAD_BYTES, backlog=4096
        )
        self.port = self.listening.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Take no more connections, and cut all that are open with a reset."""
        if self.listening is not None:
            self.listening.close()
        for task, writer in list(self._open.items()):
            reset(writer)
            if task is not asyncio.current_task():
                task.cancel()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._open[task] = writer
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        writer = self._open.pop(task)
        error = None if task.cancelled() else task.exception()
        # a client that goes is no error of ours
        if error is not None and not isinstance(error, (ConnectionError, asyncio.IncompleteReadError)):
            self.errors.append(error)
            reset(writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                text = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                await Exchange(HTTPRequest("", "", {}, b""), reader, writer).send(431, b"")
                return
            exchange = Exchange(await _read_request(text, reader), reader, writer)
            exchange.keep_alive = exchange.request.headers.get("connection", "").lower() != "close"
            await self.handler(exchange)
            if not exchange.keep_alive:
                return


async def _read_request(text: bytes, reader: asyncio.StreamReader) -> HTTPRequest:
    """The request whose head is ``text``. Errors: ConnectionError for what is no HTTP."""
    first, *lines = text.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3:
        raise ConnectionError(f"{first[:80]!r} is no HTTP request")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = await _read_chunks(reader)
    else:
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MOST_BODY_BYTES:
            raise ConnectionError(f"a body of {length[:40]} bytes is not taken")
        body = await reader.readexactly(int(length))
    return HTTPRequest(words[0], words[1].partition("?")[0], headers, body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A body in chunks."""
    body = bytearray()
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        if len(body) + size > MOST_BODY_BYTES:
            raise ConnectionError("a body that large is not taken")
        body += await reader.readexactly(size)
        await reader.readuntil(b"\r\n")
        if not size:
            return bytes(body)
