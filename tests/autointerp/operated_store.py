"""A store with rows in every table that runs have, made directly: what the tests of operations share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, update

from autointerp.pipeline.folder import RunFolder, RunNote
from autointerp.store import LabelStore
from autointerp.store.calls import CallRecord, enter, open_account
from autointerp.store.models import (
    Artefact,
    Base,
    ChoiceRow,
    Chunk,
    ControlRow,
    EstimateRow,
    ExplanationRow,
    LabelRow,
    LLMCall,
    ReviewRow,
    Run,
    ScoreRow,
    ScreenRow,
    SourceRow,
    Timing,
    VerdictRow,
)
from autointerp.store.presence import count_event

REPLY = "a reply with 'quotes', a \\ backslash, a\ttab and ünïcode"


def make_run_folder(folder: Path, run_id: str, store: str | None = None) -> RunFolder:
    """An output folder as a run leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    made = RunFolder(folder)
    made.claim_note(RunNote(run_id, "d" * 64, store))
    (folder / "sources" / "s").mkdir(parents=True, exist_ok=True)
    (folder / "sources" / "s" / "x.bin").write_bytes(b"x" * 100)
    return made


def fill(store: LabelStore, run_id: str, folder: str = "/nowhere", state: str = "done", latents: int = 7) -> None:
    """Add a run with rows in every table that refers to runs."""
    run = {"name": "n", "digest": run_id, "ordinal": 1, "config": {"k": ["v"]}, "code_version": "0"}
    store.create_run(Run(id=run_id, state=state, folder=folder, **run))
    of = {"run_id": run_id, "source": "s"}
    failed = {"failure_kind": "refused", "failure_message": "no \x1b[31m"}
    good: dict[str, Any] = {"failure_kind": None, "failure_message": None}
    rows: list[tuple[type[Base], list[dict[str, Any]]]] = [
        (ExplanationRow, [{"latent": n, "explainer": "x", "side": "input", "text": f"cats {n}", "payload": {"n": n}, "exemplar_ids": ["1"], "input_tokens": 1, "output_tokens": 2, "cost_usd": 0.5, **good} for n in range(latents)]),
        (ScoreRow, [{"latent": n, "scorer": "fuzz", "explainer": "x", "values": {"score": 1 / (n + 3)}, **good} for n in range(latents)]),
        (ChoiceRow, [{"latent": 1, "scorer": "fuzz", "explainer": "x", "values": {}, **failed}]),
        (ControlRow, [{"latent": 1, "kind": "null", "component": "fuzz", "values": {}, **good}]),
        (LabelRow, [{"latent": n, "status": "labelled", "text": f"cats {n}", "decided_by": "x", "explainer": "x", **good} for n in range(latents)]),
        (VerdictRow, [{"latent": 1, "scorer": "fuzz", "explainer": "x", "items": {"a": [1]}}]),
        (ScreenRow, [{"latent": 1, "stage": "screen_1", "explainer": "x", "items": {}, **good}]),
        (EstimateRow, [{"latent": 1, "stage": "estimate_1", "explainer": "x", "values": {}, **good}]),
        (ReviewRow, [{"latent": 1, "action": "accept", "by": "me"}]),
        (SourceRow, [{"name": "s", "subject": "a", "subject_revision": "b", "hookpoint": "h", "coder": "c", "coder_fingerprint": "f", "num_latents": latents, "control": False}]),
    ]  # fmt: skip
    with store.writing() as connection:
        for table, made in rows:
            connection.execute(
                insert(table), [{**({"run_id": run_id} if table is SourceRow else of), **row} for row in made]
            )
        connection.execute(insert(Artefact).values(run_id=run_id, kind="plan/x", value={"a": 1}))
        connection.execute(insert(Timing).values(run_id=run_id, name="load", seconds=1.5))
        chunk = {"stage": "explain", "queue": "llm", "spec": {}, "source": "s", "state": "done"}
        connection.execute(insert(Chunk), [{"run_id": run_id, "ordinal": n, **chunk} for n in range(3)])
        open_account(connection, run_id, "me")
        calls = [
            CallRecord(f"{run_id}{n}".ljust(64, "k")[:64], "judge", "m", "fuzz", "s", n, 100, 0, 10, 7, REPLY, 0.1)
            for n in range(latents)
        ]
        enter(connection, run_id, calls)
        count_event(connection, run_id, "fenced")


def age_calls(store: LabelStore, days: float, **only: Any) -> None:
    """Make calls of a run older."""
    with store.writing() as connection:
        moment = datetime.now(UTC) - timedelta(days=days)
        query = update(LLMCall).values(created_at=moment)
        for name, value in only.items():
            query = query.where(getattr(LLMCall, name) == value)
        connection.execute(query)


def contents(store: LabelStore, run_id: str | None = None) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table (of one run), sorted."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    with store.reading() as connection:
        for table in Base.metadata.sorted_tables:
            query = select(table)
            if run_id is not None:
                of_runs = any(key.target_fullname == "run.id" for key in table.foreign_keys)
                if not of_runs and table.name != "run":
                    continue
                query = query.where((table.c.run_id if "run_id" in table.c else table.c.id) == run_id)
            found[table.name] = sorted((tuple(row) for row in connection.execute(query)), key=repr)
    return found
