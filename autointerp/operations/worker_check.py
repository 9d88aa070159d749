"""Checks of the workers: somebody for every queue, all of one version, all on the same folder, one that reconciles."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from autointerp.operations.findings import Finding, ok, warning, wrong
from autointerp.pipeline.code_version import code_version
from autointerp.pipeline.owner import Owner
from autointerp.store.chunks import ChunkState
from autointerp.store.dialects import database_time
from autointerp.store.models import Chunk, Duty, Run
from autointerp.store.presence import GONE_S, LiveWorker, live_workers

RECONCILE = "reconcile"
"""Name of the reconciler's duty."""
_MARKS = ".workers"


class _Standing(NamedTuple):
    workers: list[LiveWorker]
    ready: dict[str, int]
    running_runs: int
    folders: list[str]
    unreconciled_s: float | None


def leave_mark(folder: Path, owner: str) -> None:
    """Write into a run's folder which host a worker has it on, so that a folder that is not shared is seen. Errors: OSError."""
    host = _host(owner)
    place = folder / _MARKS
    place.mkdir(exist_ok=True)
    (place / f"{host}.json").write_text(json.dumps({"owner": owner}), encoding="utf-8")


def check_workers(connection: Connection, queues: Sequence[str] = ()) -> Iterator[Finding]:
    """What is wrong with the workers; ``queues`` must have some, and so must every queue that has ready work."""
    standing = _read(connection)
    served = {queue for worker in standing.workers for queue in worker.queues}
    for queue in sorted({*queues, *standing.ready}):
        count = sum(queue in worker.queues for worker in standing.workers)
        waiting = standing.ready.get(queue, 0)
        if count:
            yield ok(
                f"workers {queue}", f"{count} {'works' if count == 1 else 'work'} on it, {waiting:,} chunks are ready."
            )
            continue
        have = f"{waiting:,} chunks are ready and " if waiting else ""
        others = f"; there are workers of {', '.join(sorted(served))}" if served else ""
        yield wrong(
            f"workers {queue}",
            f"{have}no worker of the queue {queue!r} was heard of in the last {GONE_S:.0f} s{others}: start one with "
            f"`celery -A workers.app worker -Q {queue}`.",
        )
    yield from _versions(standing.workers)
    if standing.running_runs and standing.workers:
        yield _reconciler(standing)
    yield from _shared(standing)


def _read(connection: Connection) -> _Standing:
    ready = connection.execute(
        select(Chunk.queue, func.count())
        .join(Run, Run.id == Chunk.run_id)
        .where(Run.state == "running", Chunk.state == ChunkState.READY)
        .group_by(Chunk.queue)
    ).all()
    running = connection.execute(select(Run.folder).where(Run.state == "running")).scalars().all()
    until = connection.execute(select(Duty.until).where(Duty.name == RECONCILE)).scalar()
    return _Standing(
        live_workers(connection),
        {str(queue): int(count) for queue, count in ready},
        len(running),
        sorted(set(map(str, running))),
        None if until is None else max(0.0, database_time(connection) - until),
    )


def _versions(workers: Sequence[LiveWorker]) -> Iterator[Finding]:
    here = code_version()
    others = sorted({worker.code_version for worker in workers} - {here})
    if others:
        names = ", ".join(sorted(worker.name for worker in workers if worker.code_version != here)[:5])
        yield warning(
            "versions",
            f"workers run autointerp {', '.join(others)} ({names}) and this machine {here}: restart them with the same version.",
        )
    elif workers:
        yield ok("versions", f"all {len(workers)} worker processes run autointerp {here}.")


def _reconciler(standing: _Standing) -> Finding:
    since = standing.unreconciled_s
    if since is None or since > GONE_S:
        when = "never" if since is None else f"{since:.0f} s ago"
        return wrong(
            "reconciler",
            f"{standing.running_runs} runs are running and the reconciler last worked {when}, so that nothing new becomes ready: "
            "start a worker with `celery -A workers.app worker -Q control`.",
        )
    return ok("reconciler", f"it last worked {since:.0f} s ago.")


def _shared(standing: _Standing) -> Iterator[Finding]:
    hosts = {owner.host for worker in standing.workers if (owner := Owner.parse(worker.owner)) is not None}
    for folder in map(Path, standing.folders[:20]):
        marked = _marks(folder)
        missing = sorted(hosts - marked)
        if marked and missing:
            yield wrong(
                "shared folder",
                f"workers of {', '.join(missing[:5])} have not been seen in {folder}, others have: mount the same folder at the "
                "same path on every machine.",
            )
        elif hosts and marked:
            yield ok("shared folder", f"every worker's machine has written into {folder}.")


def _marks(folder: Path) -> set[str]:
    paths: Iterable[Path] = (folder / _MARKS).glob("*.json") if (folder / _MARKS).is_dir() else ()
    return {path.stem for path in paths}


def _host(owner: str) -> str:
    parsed = Owner.parse(owner)
    return "unknown" if parsed is None else parsed.host
