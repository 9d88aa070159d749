"""Seconds and peak memory of `autointerp export` for a made-up run, from SQLite and from PostgreSQL, beside pyarrow's own floor.

python -m benchmarks.export_million [--latents 1000000] [--stores sqlite postgresql]

The export is a process of its own. The floor is pyarrow writing the same rows, which lie in memory already,
to parquet files with the same settings. `--load` also times `autointerp.load_dictionary` and `export --verify`.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow.parquet as pq
from sqlalchemy import text

from autointerp.export.parquet import ROWS_PER_GROUP
from autointerp.store import open_store
from tests.autointerp.export_world import make_world
from tests.servers import PostgresServer

TABLES = ("explanation", "score", "label", "estimate", "llm_call", "review")
_PEAK = """
import re
from pathlib import Path
# not getrusage: its peak is also that of the process that this one was forked from
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
"""
_TIMED = (
    _PEAK
    + """
import sys, time
began = time.perf_counter()
sys.argv = ["autointerp", *sys.argv[1:]]
from autointerp.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(f"{time.perf_counter() - began:.1f} s, {time.process_time():.1f} s of CPU, {peak():.0f} MB at most", flush=True)
"""
)
_LOADED = (
    _PEAK
    + """
import sys, time
began = time.perf_counter()
import autointerp
table = autointerp.load_dictionary(sys.argv[1])
print(f"{len(table):,} rows in {time.perf_counter() - began:.1f} s, {peak():.0f} MB at most", flush=True)
"""
)


@contextmanager
def _url(store: str) -> Iterator[str | None]:
    if store == "sqlite":
        yield None
        return
    with PostgresServer(settings={"shared_buffers": "128MB", "max_wal_size": "4GB"}) as server:
        yield server.new_database()


def _settle(url: str) -> None:
    """Have PostgreSQL do now what it does in the minutes after rows have come, and would do beside the export otherwise."""
    store = open_store(url)
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    store.close()


def _alone(command: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip().splitlines()[-1]


def _floor(dictionary: Path, folder: Path) -> str:
    """Writing the rows anew from memory."""
    table = pq.read_table(dictionary)
    began, cpu = time.perf_counter(), time.process_time()
    with pq.ParquetWriter(
        folder / "floor.parquet", table.schema, compression="zstd", write_page_checksum=True
    ) as writer:
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)
    return f"{time.perf_counter() - began:.1f} s, {time.process_time() - cpu:.1f} s of CPU"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=int, default=1_000_000)
    parser.add_argument("--stores", nargs="*", default=["sqlite", "postgresql"])
    parser.add_argument("--load", action="store_true")
    given = parser.parse_args()
    for store in given.stores:
        with ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = stack.enter_context(_url(store))
            began = time.perf_counter()
            make_world(root / "run", given.latents, url=url, tables=TABLES)
            if url is not None:
                _settle(url)
            print(f"{store}: {given.latents:,} latents made in {time.perf_counter() - began:.0f} s", flush=True)
            environment = {} if url is None else {"AUTOINTERP_STORE__URL": url}
            target = root / "dictionary"
            print(
                "  export:",
                _alone(["-c", _TIMED, "export", str(root / "run"), str(target)], environment),
                flush=True,
            )
            print("  pyarrow's floor:", _floor(target, root), flush=True)
            if given.load:
                print("  export --verify:", _alone(["-c", _TIMED, "export", "--verify", str(target)], environment))
                print("  load_dictionary:", _alone(["-c", _LOADED, str(target)], environment))
    print(f"(this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB)")


if __name__ == "__main__":
    main()
