"""The quickstart's run on a cluster of this machine, beside the one of `make demo`: the two dictionaries must be equal.

python -m benchmarks.demo_on_cluster [--config examples/quickstart.toml] [--local demo] [--set KEY=VALUE ...]

Real Redis, PostgreSQL and Celery workers (one process on gpu, one on everything else). Where the local run is not there it is made first.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from tests.servers import PostgresServer, RedisServer

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "autointerp.cli"]
WORKER = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-c", "1", "-Q"]
OWN = ["run_id", "created_at"]
"""Columns in which two runs of one configuration differ."""


def main() -> int:
    """Compare; 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="examples/quickstart.toml")
    parser.add_argument("--local", type=Path, default=Path("demo"))
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    sets = [part for item in given.sets for part in ("--set", item)]
    if not (given.local / "summary.json").is_file():
        subprocess.run([*COMMAND, "run", given.config, "--out", str(given.local), *sets], cwd=ROOT, check=True)
    with (
        tempfile.TemporaryDirectory(prefix="autointerp-cluster-") as folder,
        RedisServer() as redis,
        PostgresServer() as postgres,
    ):
        environment = os.environ | {
            "AUTOINTERP_STORE__URL": postgres.new_database(),
            "AUTOINTERP_BROKER__URL": redis.url,
            "HF_HUB_OFFLINE": "1",
        }
        out = Path(folder) / "out"
        began = time.monotonic()
        submitted = [*COMMAND, "submit", given.config, "--out", str(out), *sets]
        subprocess.run(submitted, cwd=ROOT, env=environment, check=True)
        queues = ("gpu", "llm,export,control")
        workers = [
            subprocess.Popen([*WORKER, queue, "-n", f"worker-{number}@%h"], cwd=ROOT, env=environment)
            for number, queue in enumerate(queues)
        ]
        try:
            state = _wait(environment)
        finally:
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
            for worker in workers:
                worker.wait(120)
        print(f"the cluster's run is {state} after {time.monotonic() - began:.0f} s")
        if state != "done":
            return 1
        differences = compare(given.local / "dictionary", out / "dictionary")
    for line in differences:
        print(line)
    print("the dictionaries differ" if differences else "the dictionaries are equal but for run_id and created_at")
    return int(bool(differences))


def compare(one: Path, other: Path) -> list[str]:
    """What differs between two dictionaries, a line a column."""
    tables = [pd.read_parquet(path).drop(columns=OWN) for path in (one, other)]
    if list(tables[0].columns) != list(tables[1].columns) or len(tables[0]) != len(tables[1]):
        return [f"{len(table):,} rows of {len(table.columns)} columns" for table in tables]
    return [
        f"{name}: {int((~same).sum()):,} of {len(same):,} rows differ"
        for name in tables[0].columns
        if not (same := _same(tables[0][name], tables[1][name])).all()
    ]


def _same(one: pd.Series[Any], other: pd.Series[Any]) -> pd.Series[Any]:
    return one.map(repr) == other.map(repr)


def _wait(environment: dict[str, str]) -> str:
    while True:
        shown = subprocess.run(
            [*COMMAND, "status", "--json"], cwd=ROOT, env=environment, capture_output=True, check=True
        )
        run = json.loads(shown.stdout)[0]
        if run["state"] != "running":
            if run["note"]:
                print(run["note"])
            return str(run["state"])
        time.sleep(3)


if __name__ == "__main__":
    sys.exit(main())
