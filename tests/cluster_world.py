"""A cluster for experiments: real Redis, store and Celery workers, a language model's server with a ledger, and hands to break each.

Workers are forks of a process that has imported everything (``tests.cli_process``): a start costs a tenth of a second, and what is
killed, stopped and cut off are processes like any others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from autointerp.cluster.submitting import submit_run
from autointerp.config import load_config
from autointerp.llm.server import Call, RunningServer
from autointerp.llm.session import MOST_UNSAVED
from autointerp.store import LabelStore, open_store
from tests.cli_process import CliProcess
from tests.made_up_world import MadeUpAnswerer, endpoint_of, make_base, run_settings, write_config

QUEUES = "gpu,llm,export,control"
SECRET = "sk-planted-5f0c2d9e81b7"
"""The key of the language model's server: it may stand in no row, no file and no log."""
BREAK = "CHAOS_BREAK"
"""Environment variable of the tests: a function of ``tests.chaos.mutants`` that breaks a guard in all workers."""
LEASE_S, RECONCILE_S = 1.5, 0.3
IN_FLIGHT = 4
"""Most calls at the server at once of one process, by the endpoint's ``max_concurrency``."""
UNDER_WAY = MOST_UNSAVED * IN_FLIGHT
"""Most calls of one process that are begun and not stored: those at the server, and replies that wait for their group's commit."""
FAST = {
    "AUTOINTERP_WORKER__LEASE_S": str(LEASE_S),
    "AUTOINTERP_WORKER__RECONCILE_S": str(RECONCILE_S),
    "AUTOINTERP_WORKER__TURN_S": "1",
    "AUTOINTERP_WORKER__BACKOFF_S": "0.1",
    "AUTOINTERP_WORKER__JSON_LOGS": "true",
}


class Worker:
    """``celery -A workers.app worker``: a main process and its pool, in a session of their own."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], program: str = "celery") -> None:
        self.process = CliProcess(arguments, environment, program)

    @property
    def pid(self) -> int:
        """Of the main process."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What it said so far."""
        return self.process.log

    def group(self) -> list[psutil.Process]:
        """All its living processes, the main one among them; also those whose main process is gone."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def pool(self) -> list[psutil.Process]:
        """The processes that do the work."""
        return [process for process in self.group() if process.pid != self.pid]

    def signal_all(self, number: int) -> None:
        """To every process at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """``kill -9`` of all its processes; waits until they are gone."""
        self.signal_all(signal.SIGKILL)
        for process in self.group():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(20)
        wait_until(lambda: not self.group(), 20, "killed processes are gone")

    def stop(self) -> None:
        """SIGSTOP to all its processes."""
        self.signal_all(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT to all its processes."""
        self.signal_all(signal.SIGCONT)

    def send(self, number: int) -> None:
        """To the main process, as an operator or a supervisor does."""
        self.process.send_signal(number)

    def wait(self, timeout: float = 60) -> int:
        """Its exit status."""
        return self.process.wait(timeout)


@dataclass
class Cluster:
    """Everything of one experiment. ``llm`` is the test server, in this process, with its ledger."""

    folder: Path
    base: Path
    store_url: str
    broker_url: str
    llm: RunningServer
    more: dict[str, str] = field(default_factory=dict)
    """Further variables of all workers."""
    workers: list[Worker] = field(default_factory=list)
    _store: LabelStore | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_workers()
        if self._store is not None:
            self._store.close()

    @property
    def store(self) -> LabelStore:
        """The cluster's store, seen from outside."""
        if self._store is None:
            self._store = open_store(self.store_url)
        return self._store

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a process of the cluster is told."""
        return {
            **os.environ,
            **FAST,
            "AUTOINTERP_STORE__URL": self.store_url,
            "AUTOINTERP_BROKER__URL": self.broker_url,
            "CHAOS_KEY": SECRET,
            "TEST_HOOK": os.environ.get(BREAK, ""),
            **self.more,
            **(more or {}),
        }

    def worker(
        self, queues: str = QUEUES, processes: int = 2, hook: str = "", more: Mapping[str, str] | None = None
    ) -> Worker:
        """Start one. ``hook``: a function of ``tests.chaos.hooks`` that changes the process before it begins."""
        hooks = [os.environ.get(BREAK, ""), f"tests.chaos.hooks:{hook}" if hook else ""]
        variables = {**(more or {}), "TEST_HOOK": ",".join(filter(None, hooks))}
        name = f"w{len(self.workers)}@test"
        arguments = ["-A", "workers.app", "worker", "-Q", queues, "-c", str(processes), "-n", name]
        started = Worker([*arguments, "--without-gossip", "--without-mingle"], self.environment(variables))
        self.workers.append(started)
        return started

    def end_workers(self) -> None:
        """Kill all workers."""
        for worker in self.workers:
            worker.go_on()
            worker.kill()

    def config(self, name: str = "run", *, url: str = "", **settings: Any) -> Path:
        """Write a run's configuration (``made_up_world.run_settings``); its endpoint is the test server."""
        endpoint = endpoint_of(url or self.llm.url, max_concurrency=IN_FLIGHT, api_key_env="CHAOS_KEY")
        settings = {"chunk_latents": 10, **settings}
        return write_config(self.folder / f"{name}.toml", run_settings(self.base, endpoint, **settings))

    def submit(self, config: Path, name: str = "run", key: str | None = None, sets: Sequence[str] = ()) -> str:
        """Store a run; its id."""
        environment = {"AUTOINTERP_STORE__URL": self.store_url}
        parsed = load_config(config, sets, environment)
        return submit_run(parsed, name, self.folder / name, key=key).run_id

    def command(self, *arguments: str) -> str:
        """Run the command line; what it said."""
        return _said(arguments, self.environment())

    def state(self, run_id: str) -> str:
        """Of a run."""
        return str(self.store.run_state(run_id))

    def wait(self, run_id: str, *states: str, timeout: float = 120) -> float:
        """Wait until a run is in one of these states (else done, and nothing but done); the seconds that it took."""
        wanted, begun = states or ("done",), time.monotonic()
        while (state := self.state(run_id)) not in wanted:
            late = time.monotonic() - begun > timeout
            if late or state in ("failed", "cancelled"):
                left = [(c.stage, c.ordinal, str(c.state), c.owner, c.attempts, c.error) for c in self._open(run_id)]
                said = "".join(worker.log[-3000:] for worker in self.workers[-3:])
                note = self.store.run(run_id).state_note
                raise AssertionError(f"run {run_id} is {state} ({note}) after {timeout} s; open: {left[:8]}\n{said}")
            time.sleep(0.05)
        return time.monotonic() - begun

    def _open(self, run_id: str) -> list[Any]:
        return [chunk for chunk in self.store.chunks(run_id) if str(chunk.state) != "done"]

    def labelled(self, run_id: str) -> int:
        """Latents that have their label."""
        return len(self.store.labels(run_id, "made-up"))

    def replies(self) -> int:
        """Calls that the server has answered so far, probes and all."""
        return len(self.llm.calls)

    def running(self, run_id: str, stage: str = "") -> list[Any]:
        """Chunks under way (of a stage)."""
        return [c for c in self.store.chunks(run_id) if str(c.state) == "running" and stage in ("", c.stage)]

    def until_calls(self, more: int, timeout: float = 120) -> None:
        """Wait until the server has got so many more calls."""
        goal = self.replies() + more
        wait_until(lambda: self.replies() >= goal, timeout, f"{goal} calls", self)

    def until_running(self, run_id: str, stage: str = "", timeout: float = 60) -> None:
        """Wait until a chunk (of a stage) is under way."""
        wait_until(lambda: bool(self.running(run_id, stage)), timeout, f"a chunk of {stage or 'any stage'} runs", self)


def wait_until(holds: Callable[[], bool], timeout: float, what: str, cluster: Cluster | None = None) -> float:
    """Wait until something holds; the seconds that it took."""
    begun = time.monotonic()
    while not holds():
        if time.monotonic() - begun > timeout:
            said = "".join(worker.log[-3000:] for worker in cluster.workers[-2:]) if cluster is not None else ""
            raise AssertionError(f"waited {timeout} s in vain: {what}\n{said}")
        time.sleep(0.02)
    return time.monotonic() - begun


def open_cluster(
    folder: Path, base: Path, store_url: str, broker_url: str, *, latency_s: float = 0.0, **server: Any
) -> contextlib.AbstractContextManager[Cluster]:
    """A cluster whose language model answers after ``latency_s``; ``server``: further settings of the test server."""

    @contextlib.contextmanager
    def opened() -> Any:
        with (
            RunningServer(MadeUpAnswerer(), latency_s=latency_s, ledger=folder / "ledger.jsonl", **server) as llm,
            Cluster(folder, base, store_url, broker_url, llm) as cluster,
        ):
            yield cluster

    return opened()


def _said(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """What the command line says, run where workers are, so that all is imported once."""
    process = CliProcess(arguments, environment, "autointerp.cli:main")
    try:
        code = process.wait(900)
    except BaseException:
        process.kill()
        raise
    assert code == 0, f"autointerp {' '.join(arguments)}: {process.log}"
    return process.log


@dataclass
class Reference:
    """A run of the same configuration that nobody disturbed, in one process and on SQLite."""

    store: LabelStore
    run_id: str
    folder: Path
    calls: list[Call]


def undisturbed(folder: Path, base: Path, **settings: Any) -> Reference:
    """Do it. ``settings`` as of ``Cluster.config``."""
    folder.mkdir(parents=True)
    with (
        RunningServer(MadeUpAnswerer()) as llm,
        Cluster(folder, base, "", "", llm) as cluster,
    ):
        config = cluster.config(**settings)
        environment = {**os.environ, "CHAOS_KEY": SECRET}
        environment.pop("AUTOINTERP_STORE__URL", None)
        _said(["run", str(config), "--out", str(folder / "out")], environment)
        calls = llm.calls
    store = open_store(f"sqlite:///{folder / 'out' / 'autointerp.db'}")
    return Reference(store, store.runs()[0].id, folder / "out", calls)


class Bases:
    """Made-up bases and undisturbed runs of this test process, each made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._references: dict[str, Reference] = {}
        self._made = 0

    def fresh(self) -> Path:
        """A new folder."""
        self._made += 1
        folder = self._folder / f"fresh-{self._made}"
        folder.mkdir()
        return folder

    def base(self, latents: int) -> Path:
        """A base of so many latents."""
        folder = self._folder / f"base-{latents}"
        return folder if folder.exists() else make_base(folder, latents)

    def reference(self, latents: int, **settings: Any) -> Reference:
        """The undisturbed run of a configuration on such a base."""
        name = f"{latents}-{'-'.join(f'{key}={value}' for key, value in sorted(settings.items()))}"
        if name not in self._references:
            self._references[name] = undisturbed(self.fresh() / "run", self.base(latents), **settings)
        return self._references[name]
