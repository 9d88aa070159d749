"""A TCP proxy that loses what a test tells it to: between a real client and a real server."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Literal, Self

Loss = Literal["before", "after"]


class TcpProxy:
    """Passes bytes on to a server on this machine.

    ``lose(words, when)``: the next request that has ``words`` in it never reaches the server (``before``), or reaches it and
    is done, and the answer is lost (``after``); either way the client's connection breaks.
    """

    def __init__(self, port: int) -> None:
        """``port``: the server's."""
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.lost = 0
        """Connections broken so far."""
        self._losses: list[tuple[bytes, Loss]] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def lose(self, words: bytes, when: Loss) -> None:
        """See the class."""
        with self._lock:
            self._losses.append((words, when))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._server_port)) as server:
            muted = threading.Event()
            answered = threading.Event()
            threading.Thread(target=self._answers, args=(server, client, muted, answered), daemon=True).start()
            while data := client.recv(65536):
                loss = self._loss(data)
                if loss == "after":
                    answered.clear()
                    muted.set()
                    server.sendall(data)
                    answered.wait(10)
                if loss is not None:
                    self.lost += 1
                    break
                server.sendall(data)
            for end in (client, server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _loss(self, data: bytes) -> Loss | None:
        with self._lock:
            for number, (words, when) in enumerate(self._losses):
                if words in data:
                    del self._losses[number]
                    return when
        return None

    @staticmethod
    def _answers(
        server: socket.socket, client: socket.socket, muted: threading.Event, answered: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if muted.is_set():
                    answered.set()
                else:
                    client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
