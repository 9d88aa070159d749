"""The command line, and workers, in processes of their own that start at once: a server imports everything, each run is a fork of it.

Seven of the nine seconds of a small run are imports. A fork is a process like any other (it has its pid, its signals, its exit
status and its files), and what it computes does not hang on who imported the modules. The entry point itself is tried elsewhere
(``test_planted_run``, ``test_cli``, ``test_inspect`` start Python).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import cast

ROOT = Path(__file__).parents[1]
_MOST_BYTES = 2**20
_IMPORTED = [
    "aiohttp",
    "alembic.command",
    "autointerp.cli",
    "autointerp.cluster.reconciling",
    "autointerp.cluster.working",
    "autointerp.llm.bounded_transport",
    "autointerp.llm.endpoints.openai",
    "autointerp.llm.runtime",
    "autointerp.operations.logging",
    "autointerp.pipeline.attaching",
    "autointerp.pipeline.driver",
    "autointerp.pipeline.stages",
    "autointerp.report.overview",
    "celery.__main__",
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.bin.worker",
    "celery.concurrency.prefork",
    "kombu.transport.redis",
    "matplotlib.backends.backend_agg",
    "openai.resources.chat.completions",
    "pandas.io.parquet",
    "sae_core.extraction",
    "sae_core.intervention",
    "sae_core.probe",
    "scipy.stats",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers",
]
"""What runs and workers import, much of it late. ``workers.app`` is not among it: it reads the environment, which is that of each worker."""
_ADDRESS = "TEST_CLI_SERVER"
"""Variable that says where the session's server is."""
_PR_SET_PDEATHSIG = 1


class CliProcess:
    """One run of the command line.

    ``program``: ``celery`` for a worker, or ``module:function`` for something else; both lead a session of their own and end with
    the test process, however that ends.
    """

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None, program: str = "autointerp"
    ) -> None:
        self.args = [program, *arguments]
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - until communicate()
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._line.connect(_server())
        request = {"program": program, "arguments": list(arguments), "environment": dict(environment or os.environ)}
        asked = json.dumps(request).encode()
        socket.send_fds(self._line, [len(asked).to_bytes(8, "big")], [self._out.fileno(), self._err.fileno()])
        self._line.sendall(asked)
        self._replies = self._line.makefile("r")
        self.pid = int(self._replies.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, -N for a signal. Errors: subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._replies.readline())
            self._replies.close()
            self._line.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        """As ``kill -number``."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """As ``kill -9``."""
        self.send_signal(signal.SIGKILL)

    @property
    def log(self) -> str:
        """What it wrote so far, on both outputs."""
        texts = []
        for file in (self._out, self._err):
            number = file.fileno()  # read beside the place at which the process goes on to write
            texts.append(os.pread(number, os.fstat(number).st_size, 0).decode(errors="replace"))
        return "".join(texts)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote, once it has ended. Errors: subprocess.TimeoutExpired."""
        self.wait(timeout)
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode())
        return texts[0], texts[1]


def run_cli(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, timeout: float = 200
) -> subprocess.CompletedProcess[str]:
    """A whole run. Errors: subprocess.TimeoutExpired, after it was killed."""
    process = CliProcess(arguments, environment)
    try:
        out, err = process.communicate(timeout)
    except BaseException:
        process.kill()
        process.wait(10)
        raise
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@cache
def _server() -> str:
    """Address of the server: that of the whole session where there is one, else one of this process."""
    return os.environ.get(_ADDRESS) or start_server()


def start_server(share: bool = False) -> str:
    """Start a server, which ends with this process, and return its address; ``share``: the processes that this one starts use it too."""
    folder = tempfile.mkdtemp(prefix="autointerp-cli-")
    address = str(Path(folder) / "socket")
    ends, ours = os.pipe()
    # a fork takes one thread along, so none may begin with an import
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(address)
    listening.listen(64)  # who asks before it is ready waits
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.cli_process", str(listening.fileno()), str(ends)],
        pass_fds=[ends, listening.fileno()],
        cwd=ROOT,
        env={**os.environ, **single},
    )
    os.close(ends)
    listening.close()
    if share:
        os.environ[_ADDRESS] = address

    def stop() -> None:
        os.close(ours)
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    return address


def _serve(listening: socket.socket, ends: int) -> None:
    for name in _IMPORTED:
        importlib.import_module(name)
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False  # torch takes its operators apart, one by one, at every end
    gc.collect()
    gc.freeze()  # a collection in a fork would touch, and so copy, every object of the imports
    ended, wake = socket.socketpair()
    ended.setblocking(False)
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    running: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listening.fileno(), ends, ended.fileno()], [], [])
        if ended.fileno() in ready:
            ended.recv(_MOST_BYTES)
            _say_ends(running)
        if ends in ready:
            return
        if listening.fileno() in ready:
            line, _ = listening.accept()
            threads = [
                Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")
            ]
            # pyarrow's allocator has a thread, and begins it again after a fork
            assert len([name for name in threads if not name.startswith("jemalloc")]) == 1, f"imports began {threads}"
            with contextlib.suppress(ConnectionError):
                _begin(line, running, (listening, ended, wake), ends)


def _begin(line: socket.socket, running: dict[int, socket.socket], own: Sequence[socket.socket], ends: int) -> None:
    """Fork what is asked for on the line, and say its pid."""
    head, fds, _, _ = socket.recv_fds(line, 8, 2)
    body = b""
    while len(body) < int.from_bytes(head, "big"):
        body += line.recv(_MOST_BYTES)
    asked = json.loads(body)
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for one in (line, *own, *running.values()):
            one.close()
        os.close(ends)
        _be_the_command(asked["program"], asked["arguments"], asked["environment"], fds)
    for fd in fds:
        os.close(fd)
    running[pid] = line
    line.sendall(f"{pid}\n".encode())


def _say_ends(running: dict[int, socket.socket]) -> None:
    """To whoever asked for a process that has ended: its status."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            with running.pop(ended[0]) as line, contextlib.suppress(ConnectionError):
                line.sendall(f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _entry_point(program: str) -> Callable[[], object]:
    if program == "autointerp":
        from autointerp.cli import main

        return main
    if program == "celery":
        from celery.__main__ import main as celery_main

        return cast(Callable[[], object], celery_main)
    module, name = program.split(":")
    return cast(Callable[[], object], getattr(importlib.import_module(module), name))


def _be_the_command(program: str, arguments: list[str], environment: dict[str, str], fds: list[int]) -> None:
    if program != "autointerp":
        _die_with_parent()
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (fds[0], 1), (fds[1], 2)):
        os.dup2(source, target)
    sys.argv = [program, *arguments]
    code: object = 0
    try:
        for hook in filter(None, environment.get("TEST_HOOK", "").split(",")):
            _entry_point(hook)()  # what a test changes in the process before it begins
        _entry_point(program)()
    except SystemExit as done:
        code = done.code
    except BaseException:  # noqa: BLE001 - printed as Python does
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
