"""python -m tests.chaos.report RECORD... > docs/chaos.md: the page of what the experiments found, from the records that they wrote."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ELSEWHERE = {
    "14": ("SQLite with the WAL-reset bug", "a rollback journal instead of WAL", "tests/autointerp/test_store.py"),
    "15-19": (
        "servers that refuse, hang, drip, send garbage, or end the account",
        "typed failures, one cut an episode, no sentinel",
        "tests/autointerp/test_llm_runs.py, test_llm_server.py, test_llm_concurrency.py, test_llm_validation.py",
    ),
    "21": (
        "a full disk at each write of an export",
        "the old dictionary stays",
        "tests/autointerp/test_export.py, test_export_runs.py, test_pipeline_files.py",
    ),
    "22": (
        "kill -9 during an export, two exports at once",
        "a complete manifest, always",
        "tests/autointerp/test_export.py, test_export_runs.py",
    ),
    "23": (
        "one byte flipped in a part",
        "`--verify` names the file",
        "tests/autointerp/test_export.py, test_export_runs.py",
    ),
    "24": (
        "corrupt, truncated or hostile weights",
        "refused before they are used",
        "tests/sae_core/test_refusals.py, test_loading_fuzz.py",
    ),
    "25": (
        "NaN activations, dead latents, too little memory",
        "typed states; a halved batch gives equal results",
        "tests/sae_core/test_extraction_faults.py, tests/autointerp/test_cli.py",
    ),
    "30": ("a million latents submitted", "rates and memory", "benchmarks (docs/performance.md)"),
    "38": (
        "any order of claim, renew, finish, expire, pause and cancel",
        "a model in plain Python, on both databases",
        "tests/autointerp/test_lease_model.py",
    ),
}
"""Rows whose experiments are other tests: what is broken, what must be seen, where."""

HEAD = """# What was broken on purpose, and what came of it

Each row is an experiment on real processes: Celery workers, Redis, PostgreSQL or SQLite, and a language model's server that writes down every
call it gets. A row stands here only because its test passed. Checked in each, but for what an experiment itself undoes (a poisoned chunk has no rows
of its own; rows 20, 27, 29, 31 and 37 check what they are about):

* every latent has exactly one label, and every component one row of it;
* every label has its raw reply in the store, or says how it failed;
* no call was made twice, but for those under way when a process died: at the server, or answered and not yet stored (together at most 8 of a process
  here, twice `max_concurrency`);
* what was spent is the sum of the calls, within the budget, and nothing is reserved;
* what `status` counts is what the rows are;
* no lease, no chunk that runs, no temporary file is left;
* all rows and the dictionary equal those of a run in one process that nobody disturbed;
* the endpoint's key, planted for this, stands in no table, file, log or message.

Leases last 1.5 s here and the reconciler looks every 0.3 s, so that a kill costs seconds; a cluster's own settings are 60 s and 2 s, and a process
that died on a host with another worker is noticed at the next look, whatever its lease. If it was itself the one that looked, others wait up to
10 s before they take its place, which is where recoveries of more than a few seconds come from. Recoveries count from the kill to the next call, the start of a new
worker in it.
"""


def page(lines: Iterable[str]) -> str:
    """The page. ``lines``: the record, the last entry of an experiment holds."""
    found = {(entry["row"], entry["done"]): entry for entry in map(json.loads, lines)}
    entries = sorted(found.values(), key=lambda entry: int(entry["row"]))
    rows = [[entry["row"], entry["done"], _seen(entry["figures"])] for entry in entries]
    others = [[row, *words[:2], f"`{words[2]}`"] for row, words in ELSEWHERE.items()]
    command = (
        "`make chaos` does all of this, `make chaos-hour` the last row for an hour; a part of it is in `make test`."
    )
    return "\n".join(
        [
            HEAD,
            f"Measured on {datetime.now(UTC):%Y-%m-%d} with {_versions()}. {command}",
            "",
            "## Experiments",
            "",
            *_table(["row", "what was done", "what was seen"], rows),
            "",
            "Rows are those of the table of experiments that the suite follows. Figures are of two cores that did other work besides.",
            "",
            "## Where the other rows are tested",
            "",
            *_table(["row", "what is broken", "what is seen", "tests"], others),
            "",
        ]
    )


def _seen(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_figure(value)}" for name, value in figures.items())


def _figure(value: Any) -> str:
    if isinstance(value, list):
        return f"{_figure(min(value))} to {_figure(max(value))}"
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *escaped]
    return [f"| {' | '.join(line)} |" for line in lines]


def _versions() -> str:
    packages = [
        f"{name} {importlib.metadata.version(name)}" for name in ("celery", "kombu", "redis", "psycopg", "sqlalchemy")
    ]
    return ", ".join(
        [f"Python {platform.python_version()}", *packages, *_servers(), f"SQLite {sqlite3.sqlite_version}"]
    )


def _servers() -> list[str]:
    from tests.servers import _postgres_binaries, _redis_binary

    said = []
    for name, binary in (("Redis", Path(_redis_binary())), ("PostgreSQL", _postgres_binaries(Path("/")) / "postgres")):
        if shutil.which(str(binary)):
            text = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=True).stdout
            words = [word.removeprefix("v=") for word in text.split() if any(c.isdigit() for c in word)]
            said.append(f"{name} {words[0]}")
    return said


if __name__ == "__main__":
    records = [Path(name) for name in sys.argv[1:] if Path(name).exists()]
    print(page(line for record in records for line in record.read_text(encoding="utf-8").splitlines()))
