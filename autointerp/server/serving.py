"""Listens, and says where."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import uvicorn

from autointerp.server.app import create_app
from autointerp.server.settings import ServerSettings
from sae_core.errors import ConfigError, MissingFileError

_LONGEST_REQUEST_LINE = 16_384


def serve_forever(settings: ServerSettings) -> None:
    """Serve until a signal ends it. Errors: ConfigError for an address that cannot be had, StoreError."""
    for folder in settings.runs:
        if not folder.is_dir():
            raise MissingFileError(f"there is no folder {str(folder)!r}: give the output folder of a run.")
    listening = _listen(settings)
    address, port = listening.getsockname()[:2]
    app = create_app(settings)
    shown = f"[{address}]" if ":" in address else address
    print(f"autointerp is at http://{shown}:{port}/ (stop it with Ctrl-C)", flush=True)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # addresses hold what people search for
        server_header=False,
        h11_max_incomplete_event_size=_LONGEST_REQUEST_LINE,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[listening])


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(settings: ServerSettings) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError as error:
        raise ConfigError(
            f"--host {settings.host} --port {settings.port} cannot be listened at ({(error.strerror or str(error)).lower()}): give another "
            "port, or --port 0 for any free one."
        ) from error
    return found


def home_of(settings: ServerSettings) -> Path:
    """The home, absolute."""
    return settings.home.absolute()
