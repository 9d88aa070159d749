"""What must hold after every experiment, whatever was broken: one function each, which raises with what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
from sqlalchemy import func, inspect, select, text

from autointerp.llm.server import Call
from autointerp.report.run_status import read_status
from autointerp.store import LabelStore
from autointerp.store.models import Base, Chunk, ExplanationRow, LabelRow, LLMBudget, LLMCall, LLMReservation, ScoreRow
from tests.cluster_world import SECRET, Cluster, Reference, wait_until

COMPARED = ("explanation", "score", "verdict", "control_row", "label", "screen", "estimate", "choice")
_OWN = ("id", "run_id", "created_at")
"""Columns that two runs may differ in."""
_COSTS = ("input_tokens", "output_tokens", "cost_usd")
"""Columns of the dictionary that say what a latent took."""


class Broken(AssertionError):
    """An invariant does not hold."""


def one_terminal_row(
    store: LabelStore, run_id: str, source: str, latents: Iterable[int], poisoned: Iterable[int] = ()
) -> None:
    """I1: exactly one label a latent, and one explanation and one score of each component.

    Of ``poisoned`` latents the label alone says what became of them: no component has a row of theirs.
    """
    expected = Counter(latents)
    worked = expected - Counter(list(poisoned))
    with store.reading() as connection:
        labels = connection.execute(select(LabelRow.latent).where(LabelRow.run_id == run_id, LabelRow.source == source))
        found = Counter(row[0] for row in labels)
        if found != expected:
            raise Broken(f"I1: labels missing {list(expected - found)[:9]}, too many {list(found - expected)[:9]}")
        for table, component in ((ExplanationRow, ExplanationRow.explainer), (ScoreRow, ScoreRow.scorer)):
            query = select(component, table.latent).where(table.run_id == run_id, table.source == source)
            by: dict[str, Counter[int]] = {}
            for name, latent in connection.execute(query):
                by.setdefault(name, Counter())[latent] += 1
            for name, rows in by.items():
                if rows != worked:
                    raise Broken(f"I1: {table.__tablename__} of {name!r}: {len(rows)} latents of {len(worked)}")


def paid_or_failed(store: LabelStore, run_id: str) -> None:
    """I2: every explanation has a stored raw reply, or says how it failed."""
    with store.reading() as connection:
        replied = {
            (row[0], row[1])
            for row in connection.execute(
                select(LLMCall.source, LLMCall.latent).where(LLMCall.run_id == run_id, LLMCall.reply.is_not(None))
            )
        }
        query = select(
            ExplanationRow.source, ExplanationRow.latent, ExplanationRow.text, ExplanationRow.failure_kind
        ).where(ExplanationRow.run_id == run_id)
        for source, latent, words, failure in connection.execute(query):
            if not failure and (not words or (source, latent) not in replied):
                raise Broken(f"I2: latent {latent} of {source} has a label and no stored reply")


def calls_twice(calls: Iterable[Call]) -> int:
    """Paid calls beyond the first of each request; probes of the server's abilities are not counted."""
    billed = [call for call in calls if call.billed and is_work(call)]
    distinct = {repr(call.request) for call in billed}
    return len(billed) - len(distinct)


def is_work(call: Call) -> bool:
    """Whether a call asks about a latent: it is no probe."""
    return "<<" in call.prompt or 'Label: "' in call.prompt


def calls_without_reply(store: LabelStore, run_id: str, calls: Iterable[Call]) -> int:
    """Paid calls about latents whose reply is not in the store: lost, or under way."""
    kept = (LLMCall.run_id == run_id, LLMCall.latent.is_not(None), LLMCall.reply.is_not(None))
    with store.reading() as connection:
        stored = connection.execute(select(func.count()).select_from(LLMCall).where(*kept)).scalar_one()
    return sum(call.billed and is_work(call) for call in calls) - int(stored)


def few_calls_twice(calls: Iterable[Call], allowed: int) -> int:
    """I3: no more calls than requests, but for those under way when somebody was interrupted; returns how many more."""
    extra = calls_twice(calls)
    if extra > allowed:
        raise Broken(f"I3: {extra} calls were made twice, and {allowed} may have been")
    return extra


def books_balance(store: LabelStore, run_id: str, calls: Iterable[Call] | None = None) -> None:
    """I4: what was spent is the sum of the calls, within the cap, nothing is reserved; and no paid call is missing from the books."""
    with store.reading() as connection:
        rows = connection.execute(
            select(LLMCall.input_tokens, LLMCall.output_tokens, LLMCall.cost_nano_usd, LLMCall.outcome).where(
                LLMCall.run_id == run_id
            )
        ).all()
        spent = connection.execute(
            select(LLMBudget.spent_tokens, LLMBudget.spent_nano_usd).where(LLMBudget.run_id == run_id)
        ).one_or_none()
        held = connection.execute(
            select(LLMReservation.owner, LLMReservation.tokens, LLMReservation.nano_usd).where(
                LLMReservation.run_id == run_id
            )
        ).all()
    tokens, nano = sum(row[0] + row[1] for row in rows), sum(row[2] or 0 for row in rows)
    if spent is not None and tuple(spent) != (tokens, nano):
        raise Broken(f"I4: the books say {tuple(spent)} tokens and nano-dollars, the calls add up to {(tokens, nano)}")
    if any(row[1] or row[2] for row in held):
        raise Broken(f"I4: still reserved: {[tuple(row) for row in held]}")
    cap = (store.run(run_id).config.get("budget") or {}).get("usd")
    if cap is not None and nano > cap * 10**9:
        raise Broken(f"I4: {nano} nano-dollars spent of {cap} dollars")
    if calls is not None:
        all_booked(tokens, calls)


def all_booked(tokens: int, calls: Iterable[Call]) -> None:
    """I4, from the server's side: no paid call is missing from ``tokens``, what the books have."""
    billed = sum(call.prompt_tokens + call.completion_tokens for call in calls if call.billed)
    if tokens < billed:
        raise Broken(f"I4: the server billed {billed} tokens, the books have {tokens}")


def counters_are_rows(store: LabelStore, run_id: str) -> None:
    """I5: what ``status`` shows is what the rows are."""
    labels = sum(len(store.labels(run_id, source.name)) for source in store.sources(run_id))
    explained = sum(len(store.explanations(run_id, source.name)) for source in store.sources(run_id))
    for stage in read_status(store, run_id).stages:
        if stage.done + stage.poisoned != stage.total or stage.running:
            raise Broken(f"I5: {stage}")
        rows = {"label": labels, "explain": explained}.get(stage.name)
        if rows is not None and not stage.poisoned and stage.units_done != rows:
            raise Broken(f"I5: {stage.name} shows {stage.units_done} done and has {rows} rows")


def nothing_left(store: LabelStore, run_id: str, folder: Path) -> None:
    """I6: no lease, no chunk that runs, no temporary file."""
    with store.reading() as connection:
        held = connection.execute(
            select(Chunk.stage, Chunk.ordinal, Chunk.state, Chunk.owner, Chunk.lease_until).where(
                Chunk.run_id == run_id,
                (Chunk.state.in_(["running", "ready", "waiting"])) | (Chunk.lease_until > 0) | (Chunk.owner != ""),
            )
        ).all()
    if held:
        raise Broken(f"I6: still held or open: {[tuple(row) for row in held][:9]}")
    marks = {".workers"}  # by which ``doctor`` sees that all workers reach the folder
    hidden = [path for path in folder.rglob("*") if ".tmp" in path.name or path.name.startswith(".")]
    temporary = [str(path) for path in hidden if path.name not in marks]
    if temporary:
        raise Broken(f"I6: left behind: {temporary[:9]}")


def equal_to(store: LabelStore, run_id: str, folder: Path, whole: Reference) -> None:
    """I7: the rows and the dictionary of the undisturbed run, but for ids and times."""
    for name in COMPARED:
        mine, theirs = rows_of(store, run_id, name), rows_of(whole.store, whole.run_id, name)
        if mine != theirs:
            pairs = [(a, b) for a, b in zip(mine, theirs, strict=False) if a != b]
            raise Broken(f"I7: {name}: {len(mine)} rows, undisturbed {len(theirs)}; first difference {pairs[:1]}")
    frames = [pd.read_parquet(place / "dictionary") for place in (folder, whole.folder)]
    for name in _COSTS:  # a call that was cut off was paid, and is a cost of its latent
        if (frames[0][name] < frames[1][name]).any():
            raise Broken(f"I7: some latents took fewer {name} than undisturbed")
    try:
        pd.testing.assert_frame_equal(*(frame.drop(columns=["created_at", "run_id", *_COSTS]) for frame in frames))
    except AssertionError as error:
        raise Broken(f"I7: dictionaries differ: {str(error)[:400]}") from None


def rows_of(store: LabelStore, run_id: str, name: str) -> list[tuple[Any, ...]]:
    """A table's rows of a run as they stand in the database, in a fixed order, without what is the run's own."""
    table = Base.metadata.tables[name]
    columns = [column for column in table.columns if column.name not in _OWN]
    with store.reading() as connection:
        rows = connection.execute(select(*columns).where(table.c.run_id == run_id)).all()
    return sorted((tuple(row) for row in rows), key=repr)


def secret_nowhere(cluster: Cluster, run_folder: Path) -> None:
    """I8: the planted key is in no table, no file, no log and no message."""
    with cluster.store.reading() as connection:
        for name in inspect(connection).get_table_names():
            for row in connection.execute(text(f'SELECT * FROM "{name}"')):
                if SECRET in repr(tuple(row)):
                    raise Broken(f"I8: the key stands in the table {name}")
    files = [path for path in [*run_folder.rglob("*"), *cluster.folder.glob("*.toml")] if path.is_file()]
    for path in files:
        if SECRET.encode() in path.read_bytes():
            raise Broken(f"I8: the key stands in {path}")
    for worker in cluster.workers:
        if SECRET in worker.log:
            raise Broken("I8: the key stands in a worker's log")
    if cluster.broker_url:
        import redis

        where = urlsplit(cluster.broker_url)
        with redis.Redis.from_url(cluster.broker_url) as client:
            for key in client.scan_iter():
                if SECRET.encode() in (client.dump(key) or b""):
                    raise Broken(f"I8: the key stands in Redis, {where.path}")


def all_hold(cluster: Cluster, run_id: str, whole: Reference, *, interrupted: int = 0, alone: bool = True) -> int:
    """I1 to I8 of a run that is done. ``interrupted``: calls that may have been under way at interruptions. Returns those made twice.

    ``alone``: whether all calls of the server are the run's, and the broker answers.
    """
    folder = Path(cluster.store.run(run_id).folder)
    sources = {row.name: row.num_latents for row in whole.store.sources(whole.run_id)}
    for source in sources:
        one_terminal_row(
            cluster.store, run_id, source, [row.latent for row in whole.store.labels(whole.run_id, source)]
        )
    paid_or_failed(cluster.store, run_id)
    extra = few_calls_twice(cluster.llm.calls, interrupted)
    _settled(cluster.store, run_id)
    books_balance(cluster.store, run_id, cluster.llm.calls if alone else None)
    counters_are_rows(cluster.store, run_id)
    nothing_left(cluster.store, run_id, folder)
    equal_to(cluster.store, run_id, folder, whole)
    if alone:
        secret_nowhere(cluster, folder)
    return extra


def _settled(store: LabelStore, run_id: str) -> None:
    """Wait for the reservations of processes that are gone: the reconciler enters them as spent."""

    def settled() -> bool:
        try:
            books_balance(store, run_id)
        except Broken as error:
            if "reserved" in str(error):
                return False
            raise
        return True

    wait_until(settled, SETTLE_S, "reservations of the dead are settled")


SETTLE_S = 15.0
"""Longest that a reservation of a process that is gone may stand after its run is done."""
