"""A cluster at work on a million made-up latents: seconds to submit, to the first label and to cancel, labels a second, memory.

python -m benchmarks.cluster_million [--latents 1000000] [--seconds 90] [--latency-ms 0]

A Redis, a PostgreSQL (with fsync), a server of scripted answers over HTTP and Celery's workers are processes of this machine. The
run is worked for some time by one process, then by two, and then cancelled. Everything else on the machine takes away from the rates.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.made_up_world import SCRIPTED, endpoint_of, make_base, run_settings, write_config
from tests.servers import PostgresServer, RedisServer

ROOT = Path(__file__).parents[1]
QUEUES = "llm,control,export,gpu"
GOALS = {
    "submit_s": ("`autointerp submit`, the whole command", "s", None),
    "submit_run_s": ("submit_run alone, in a process that has loaded it", "s", 1.0),
    "first_label_s": ("from the command to the first label in the store", "s", 30.0),
    "labels_per_s_1": ("labels a second, 1 process", "", None),
    "labels_per_s_2": ("labels a second, 2 processes", "", None),
    "cpu_s": ("CPU seconds of the worker processes for 1,000 labels", "s", None),
    "redis_bytes": ("Redis, used_memory at most", "MB", 50e6),
    "redis_more_bytes": ("of it what the run added", "MB", None),
    "rss_bytes": ("memory of a process at work, at most", "MB", None),
    "rss_slope_bytes": ("its growth in a minute, after the first one", "MB", None),
    "round_s": ("a round of the reconciler, median of 5", "s", 1.0),
    "status_s": ("`autointerp status`, the whole command", "s", None),
    "read_status_s": ("reading the status alone, median of 5", "s", 1.0),
    "cancel_s": ("`autointerp cancel`, the whole command", "s", None),
    "chunks_end_s": ("from its start until no chunk runs", "s", 10.0),
    "calls_end_s": ("from its start until the last call reached the server", "s", 10.0),
}
"""What is measured, its unit, and what it is to stay under."""
_TIMED = """
import os, statistics, sys, time
from autointerp.cluster.settings import load_settings
from autointerp.store import open_store
settings = load_settings()
store = open_store(settings.store_url)
if sys.argv[1] == "round":
    from autointerp.cluster.reconciling import ClusterReconciler
    import workers.tasks
    from workers.app import app
    from workers.celery_broker import CeleryBroker
    reconciler = ClusterReconciler(store, CeleryBroker(app), settings.worker)
    def do():
        while True:
            began = time.perf_counter()
            if reconciler.look():
                return time.perf_counter() - began
            time.sleep(0.2)
elif sys.argv[1] == "status":
    from autointerp.report.run_status import read_status
    def do():
        began = time.perf_counter()
        read_status(store, sys.argv[2])
        return time.perf_counter() - began
else:
    from pathlib import Path
    from autointerp.cluster.submitting import submit_run
    from autointerp.config import load_config
    places = iter(range(100))
    def do():
        began = time.perf_counter()
        submit_run(load_config(Path(sys.argv[2]), (), os.environ), "again", Path(sys.argv[3] + str(next(places))))
        return time.perf_counter() - began
do()  # modules are loaded once a process
print(statistics.median(do() for _ in range(int(sys.argv[-1]))))
"""


class Watch:
    """Looks at Redis and at the worker processes once a second."""

    def __init__(self, redis: Any) -> None:
        self.redis, self.before = redis, int(redis.info("memory")["used_memory"])
        self.most_redis = self.before
        self.processes: dict[int, psutil.Process] = {}
        self.rss: dict[int, list[tuple[float, int]]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(1.0):
            self.most_redis = max(self.most_redis, int(self.redis.info("memory")["used_memory"]))
            for pid, process in list(self.processes.items()):
                try:
                    memory = process.memory_info()
                    # pages of mapped exemplar files are the system's cache, which it takes back as it likes
                    self.rss.setdefault(pid, []).append((time.monotonic(), memory.rss - memory.shared))
                except psutil.NoSuchProcess:
                    del self.processes[pid]

    def cpu_seconds(self) -> float:
        """Seconds of CPU that all processes have taken so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes.values())

    def slopes(self) -> list[float]:
        """Bytes that each process grew in a minute, from its second minute on (or from half of the time, where it was shorter)."""
        found = []
        for looks in self.rss.values():
            begin = min(looks[0][0] + 60, (looks[0][0] + looks[-1][0]) / 2)
            later = np.array([look for look in looks if look[0] >= begin])
            if len(later) > 5:
                found.append(60 * float(np.polyfit(later[:, 0] - later[0, 0], later[:, 1], 1)[0]))
        return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=90.0, help="of each of the two stretches that are measured")
    parser.add_argument("--chunk-latents", type=int, default=128)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="of the server, from a request to its answer")
    parser.add_argument(
        "--in-process", action="store_true", help="answers come from inside of the workers, not over HTTP"
    )
    parser.add_argument("--base", type=Path, help="a base that was made before, by python -m tests.made_up_world")
    parser.add_argument("--keep", type=Path, help="folder that is kept, with the workers' logs in it")
    given = parser.parse_args()
    with ExitStack() as stack:
        root = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root.mkdir(parents=True, exist_ok=True)
        settings = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "256MB", "max_wal_size": "2GB"}
        redis = stack.enter_context(RedisServer(appendonly=True))
        postgres = stack.enter_context(PostgresServer(settings=settings))
        began = time.perf_counter()
        base = given.base or make_base(root / "base", given.latents)
        print(f"{given.latents:,} latents made in {time.perf_counter() - began:.0f} s", flush=True)
        found = _measure(given, root, base, redis, postgres, stack)
    print(f"\n| {given.latents:,} latents, {os.cpu_count()} cores | | goal |\n|---|---|---|")
    for name, (what, unit, goal) in GOALS.items():
        if name in found:
            print(f"| {what} | {_shown(found[name], unit)} | {'' if goal is None else 'below ' + _shown(goal, unit)} |")
    print(json.dumps(found))


def _shown(value: float, unit: str) -> str:
    return f"{value / 1e6:,.1f} MB" if unit == "MB" else f"{value:,.2f} s" if unit == "s" else f"{value:,.0f}"


def _measure(
    given: argparse.Namespace, root: Path, base: Path, redis: RedisServer, postgres: PostgresServer, stack: ExitStack
) -> dict[str, Any]:
    database = postgres.new_database()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment |= {"AUTOINTERP_STORE__URL": database, "AUTOINTERP_BROKER__URL": redis.url}
    ledger = root / "calls.jsonl"
    endpoint: Mapping[str, Any] = SCRIPTED
    if not given.in_process:
        serve = ["-m", "tests.made_up_world", "--serve", "--ledger", str(ledger), "--latency-ms", str(given.latency_ms)]
        server = subprocess.Popen([sys.executable, *serve], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        stack.callback(_end, server)
        assert server.stdout is not None
        endpoint = endpoint_of(server.stdout.readline().strip())
    config = run_settings(base, endpoint, latents=given.latents, chunk_latents=given.chunk_latents)
    path = write_config(root / "million.toml", config)
    name = database.rsplit("/", 1)[1]

    def ask(statement: str) -> Any:
        return postgres.execute(statement, name)[0][0]

    def command(*words: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "autointerp.cli", *words], cwd=ROOT, env=environment, check=True)
        return time.perf_counter() - began

    def timed(*words: str) -> float:
        program = [sys.executable, "-c", _TIMED, *words]
        done = subprocess.run(program, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return float(done.stdout.splitlines()[-1])

    environment["AUTOINTERP_STORE__URL"] = postgres.new_database()
    found: dict[str, Any] = {"latents": given.latents, "chunk_latents": given.chunk_latents}
    found["submit_run_s"] = timed("submit", str(path), str(root / "alone"), "3")
    environment["AUTOINTERP_STORE__URL"] = database

    watch = Watch(redis.client())
    stack.callback(watch.end)
    _worker(1, environment, root, watch, stack)
    began = time.perf_counter()
    found["submit_s"] = command("submit", str(path), "--out", str(root / "run"))
    _until(lambda: ask("SELECT count(*) FROM label") > 0 or ask("SELECT state FROM run") != "running", 300)
    if ask("SELECT state FROM run") != "running":
        raise SystemExit(f"the run stopped: {ask('SELECT state_note FROM run')}")
    found["first_label_s"] = time.perf_counter() - began
    print(f"first label after {found['first_label_s']:.1f} s", flush=True)
    run_id = ask("SELECT id FROM run")

    for number in (1, 2):
        if number == 2:
            _worker(2, environment, root, watch, stack)
            time.sleep(10)
        labels, at, cpu = ask("SELECT count(*) FROM label"), time.perf_counter(), watch.cpu_seconds()
        time.sleep(given.seconds)
        labels = ask("SELECT count(*) FROM label") - labels
        found["cpu_s"] = 1000 * (watch.cpu_seconds() - cpu) / max(1, labels)
        found[f"labels_per_s_{number}"] = labels / (time.perf_counter() - at)
        print(f"{number}: {found[f'labels_per_s_{number}']:,.1f} labels a second", flush=True)
    found["read_status_s"] = timed("status", run_id, "5")
    found["round_s"] = timed("round", "5")
    found["status_s"] = command("status", run_id)

    began_to_end = time.time()
    found["cancel_s"] = command("cancel", run_id)
    _until(lambda: ask("SELECT count(*) FROM chunk WHERE state = 'running'") == 0, 120)
    found["chunks_end_s"] = time.time() - began_to_end
    if not given.in_process:
        time.sleep(10)  # whoever still asked would be heard of now
        with ledger.open("rb") as file:
            file.seek(max(0, ledger.stat().st_size - 1_000_000))
            lines = file.read().splitlines()[1:]
        found["calls_end_s"] = max(0.0, max(json.loads(line)["time"] for line in lines) - began_to_end)
    found["redis_bytes"], found["redis_more_bytes"] = watch.most_redis, watch.most_redis - watch.before
    found["rss_bytes"] = max(rss for looks in watch.rss.values() for _, rss in looks)
    found["rss_slope_bytes"] = max(watch.slopes(), default=0.0)
    sizes = "SELECT json_object_agg(relname, pg_total_relation_size(relid)) FROM pg_stat_user_tables"
    found["table_bytes"] = {table: size for table, size in ask(sizes).items() if size > 200_000}
    counts = {table: ask(f"SELECT count(*) FROM {table}") for table in ("chunk", "explanation", "label", "llm_call")}
    found["rows"] = counts
    return found


def _worker(number: int, environment: Mapping[str, str], root: Path, watch: Watch, stack: ExitStack) -> None:
    """Start a worker with one process in its pool, and wait until that process is there."""
    program = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-Q", QUEUES, "-c", "1"]
    program += ["-n", f"bench{number}@%h"]
    log = stack.enter_context((root / f"worker-{number}.log").open("wb"))
    process = subprocess.Popen(program, cwd=ROOT, env=dict(environment), stdout=log, stderr=log)
    stack.callback(_end, process)

    def child() -> bool:
        children = psutil.Process(process.pid).children()
        watch.processes.update({one.pid: one for one in children})
        return bool(children)

    _until(child, 60)
    time.sleep(3)


def _end(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in children:
            child.kill()
        process.wait()


def _until(there: Callable[[], bool], most_s: float) -> None:
    ends = time.monotonic() + most_s
    while not there():
        if time.monotonic() > ends:
            raise SystemExit(f"nothing after {most_s:.0f} s")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
