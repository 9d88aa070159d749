"""What a large run takes: hours, dollars, GiB. From measured rates (docs/operations.md has the table).

python benchmarks/sizing.py measure RUN --store sqlite:////tmp/sizing.db --store postgresql+psycopg://...   # bytes, as JSON
python benchmarks/sizing.py table benchmarks/sizing.json                                                    # the table

``measure`` copies the rows of a finished run to 10,000 latents of an empty store. The rates in sizing.json are inputs: each says
where it comes from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, text

from autointerp.config import load_config
from autointerp.pipeline.finding import find_run
from autointerp.planning.plan import plan_run
from autointerp.store import LabelStore, open_store
from autointerp.store.models import (
    Base,
    ChoiceRow,
    EstimateRow,
    ExplanationRow,
    LabelRow,
    LLMCall,
    Run,
    ScoreRow,
    ScreenRow,
    VerdictRow,
)

LATENTS = 10_000
CALLS = 10_000
SIZES = (100_000, 1_000_000, 10_000_000)
RESULTS: tuple[type[Base], ...] = (ExplanationRow, ScoreRow, ChoiceRow, VerdictRow, ScreenRow, EstimateRow, LabelRow)
CODER_LATENTS = 16_384
"""Latents of one coder: that many share a pass over the corpus in the table."""


def measure(run: str, urls: list[str]) -> dict[str, Any]:
    """Bytes that results take a latent, and a call of a language model, in each store."""
    store, run_id = find_run(run)
    source = next(one.name for one in store.sources(run_id) if not one.control)
    templates = {table: _rows(store, table, run_id, source) for table in RESULTS}
    latents = sorted({row["latent"] for row in templates[LabelRow]})
    calls = [row for row in _rows(store, LLMCall, run_id, source) if row["reply"] is not None]
    found: dict[str, Any] = {"run": {"latents": len(latents), "calls": len(calls)}}
    for url in urls:
        target = open_store(url)
        with target.writing() as connection:
            row = store.run(run_id)
            fields = {
                name: getattr(row, name) for name in ("name", "digest", "ordinal", "config", "folder", "code_version")
            }
            connection.execute(insert(Run).values(id="sizing", state="running", **fields))
        before = _bytes(target)
        for table, rows in templates.items():
            by_latent = {latent: [row for row in rows if row["latent"] == latent] for latent in latents}
            copies = (
                {**row, "latent": number, "run_id": "sizing"}
                for number in range(LATENTS)
                for row in by_latent[latents[number % len(latents)]]
            )
            _insert(target, table, copies)
        results = _bytes(target)
        _insert(
            target,
            LLMCall,
            (
                {**calls[number % len(calls)], "run_id": "sizing", "key": hashlib.sha256(b"%d" % number).hexdigest()}
                for number in range(CALLS)
            ),
        )
        found[target.engine.dialect.name] = {
            "result_bytes_per_latent": round((results - before) / LATENTS),
            "bytes_per_call": round((_bytes(target) - results) / CALLS),
        }
        target.close()
    store.close()
    return found


def _rows(store: LabelStore, table: type[Base], run_id: str, source: str) -> list[dict[str, Any]]:
    columns: Any = table.__table__.c
    with store.reading() as connection:
        rows = connection.execute(
            select(table.__table__).where(columns.run_id == run_id, columns.source == source)
        ).mappings()
        return [{name: value for name, value in row.items() if name != "id"} for row in rows]


def _insert(store: LabelStore, table: type[Base], rows: Iterable[dict[str, Any]]) -> None:
    rest = iter(rows)
    while some := list(islice(rest, 2_000)):
        with store.writing() as connection:
            connection.execute(insert(table), some)


def _bytes(store: LabelStore) -> int:
    """Bytes of the tables with their indexes."""
    with store.reading() as connection:
        if connection.dialect.name == "sqlite":
            return _sqlite_bytes(connection)
        return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())


def _sqlite_bytes(connection: Connection) -> int:
    pages, free, size = (
        int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def table(rates: dict[str, Any], config_path: Path) -> str:
    """The table in Markdown."""
    config = load_config(config_path, ["latents=all"], {})
    prices = rates["prices_usd_per_million"]
    sizes = rates["database"]
    lines: dict[str, list[str]] = {}

    def add(name: str, value: str) -> None:
        lines.setdefault(name, []).append(value)

    for latents in SIZES:
        coders = -(-latents // CODER_LATENTS)
        per_coder = plan_run(config, num_latents=CODER_LATENTS).total()
        assert per_coder is not None
        share = latents / CODER_LATENTS  # a last coder that is not full takes its share
        calls, read, written = (
            share * one for one in (per_coder.calls, per_coder.usage.input_tokens, per_coder.usage.output_tokens)
        )
        add("coders of 16,384 latents", f"{coders:,}")
        add("calls", f"{calls / 1e6:,.1f} million")
        add("tokens read", f"{read / 1e9:,.1f} billion")
        add("tokens written", f"{written / 1e9:,.2f} billion")
        for price in prices:
            dollars = (read * price["input"] + written * price["output"]) / 1e6
            add(f"US dollars at {price['input']:g} and {price['output']:g} a million tokens", f"{dollars:,.0f}")
        labels_a_second = rates["labels_per_second_per_process"] or (
            rates["calls_per_second_per_process"] * latents / calls
        )
        for processes in (1, 16):
            add(
                f"hours of labelling, {processes} process{'es' if processes > 1 else ''}",
                _short(latents / labels_a_second / processes / 3600),
            )
        extraction = share * rates["corpus_tokens"] / rates["extraction_tokens_per_second"] / 3600
        add("hours of extraction, 1 worker", _short(extraction))
        for kind, shown in (("sqlite", "SQLite"), ("postgresql", "PostgreSQL")):
            kept = latents * sizes[kind]["result_bytes_per_latent"]
            replies = calls * sizes[kind]["bytes_per_call"]
            add(f"GiB of {shown}, with all replies", f"{(kept + replies) / 2**30:,.1f}")
            add(f"GiB of {shown}, results alone", f"{kept / 2**30:,.1f}")
        files = latents * (rates["exemplar_bytes_per_latent"] + rates["evidence_bytes_per_latent"])
        add("GiB of files (exemplars, evidence)", f"{files / 2**30:,.1f}")
        add("GiB of the exported dictionary", f"{latents * rates['export_bytes_per_row'] / 2**30:,.2f}")
    heading = ["| latents | " + " | ".join(f"{size:,}" for size in SIZES) + " |", "|---|" + "---:|" * len(SIZES)]
    return "\n".join([*heading, *(f"| {name} | {' | '.join(values)} |" for name, values in lines.items())])


def _short(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("run", help="output folder of a finished run with judges")
    measuring.add_argument("--store", action="append", required=True, help="URL of an empty store")
    printing = commands.add_parser("table")
    printing.add_argument("rates", type=Path)
    printing.add_argument("--config", type=Path, default=Path("examples/llm.toml"))
    given = parser.parse_args()
    if given.command == "measure":
        print(json.dumps(measure(given.run, given.store), indent=1))
    else:
        print(table(json.loads(given.rates.read_text(encoding="utf-8")), given.config))


if __name__ == "__main__":
    main()
