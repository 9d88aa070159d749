"""Listens, and says where."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import uvicorn

from autointerp.operations.logging import configure_logs
from autointerp.server.addresses import is_loopback
from autointerp.server.app import create_app
from autointerp.server.guards import needs_tokens
from autointerp.server.settings import ServerSettings
from autointerp.server.timed_http import TimedHTTP
from autointerp.server.tokens import has_usable_tokens
from autointerp.store import LabelStore
from sae_core.errors import ConfigError, MissingFileError

_LONGEST_HEAD = 32_768
"""Bytes of a request before its body; more than the guards let through, so that theirs is the answer."""
_MOST_CONNECTIONS = 1_024


def serve_forever(settings: ServerSettings) -> None:
    """Serve until a signal ends it. Errors: ConfigError for an address that cannot be had, or must not without tokens; StoreError."""
    for folder in settings.runs:
        if not folder.is_dir():
            raise MissingFileError(f"there is no folder {str(folder)!r}: give the output folder of a run.")
    app = create_app(settings)
    check_tokens(settings, settings.host, app.state.shelf.own)
    listening = _listen(settings)
    address, port = listening.getsockname()[:2]
    check_tokens(settings, address, app.state.shelf.own)  # a name may turn out to be an address that others reach
    configure_logs(False, level=logging.WARNING)
    shown = f"[{address}]" if ":" in address else address
    print(f"autointerp is at http://{shown}:{port}/ (stop it with Ctrl-C)", flush=True)
    config = uvicorn.Config(
        app,
        http=TimedHTTP,
        ws="none",
        log_config=None,
        access_log=False,  # addresses hold what people search for
        server_header=False,
        h11_max_incomplete_event_size=_LONGEST_HEAD,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[listening])


def check_tokens(settings: ServerSettings, address: str, store: LabelStore) -> None:
    """Refuse to be reached by others than this machine's user where nobody could show a token. Errors: ConfigError."""
    if (needs_tokens(settings) or not is_loopback(address)) and not has_usable_tokens(store):
        how = (
            f"--name {settings.hosts[0]}"
            if is_loopback(settings.host) and settings.hosts
            else f"--host {settings.host}"
        )
        raise ConfigError(
            f"{how} lets others reach this server, and it has no token by which to know them: make one with `autointerp token add NAME "
            "--scope read` (and the same --home), or leave it at this machine's own address."
        )


def _listen(settings: ServerSettings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[
            0
        ]
        # with its protocol, else asyncio does not see that it is TCP, leaves Nagle's algorithm on, and every answer waits 40 ms
        found = socket.socket(family, kind, protocol)
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
