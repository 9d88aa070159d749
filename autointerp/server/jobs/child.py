"""``python -m autointerp.server.jobs.child``: does one job, and writes into its row how it ended.

One line of JSON on its input says which. Where the input ends the server has gone: the run is left in good order, and whichever
server comes next takes it up again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from pydantic import BaseModel

from autointerp.pipeline.code_version import code_version
from autointerp.pipeline.driver import LocalDriver
from autointerp.pipeline.interruption import Halted, Interrupted
from autointerp.progress import PlainDisplay
from autointerp.server.jobs.rows import change, job
from autointerp.store import LabelStore, open_store
from autointerp.store.models import JobRow
from sae_core.errors import AutointerpError, BudgetError, EndpointError, InputError


class Opening(BaseModel):
    """What the first line says."""

    store: str
    """URL of the store that has the job's row."""
    job_id: str


def main() -> None:
    """Do the job."""
    opening = Opening.model_validate_json(_first_line())
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    print(f"job {opening.job_id}, autointerp {code_version()}", flush=True)
    store = open_store(opening.store)
    row = job(store, opening.job_id)
    try:
        _export(row) if row.kind == "export" else _label(store, row)
    except (EndpointError, BudgetError) as error:  # the run waits for a person
        _end(store, row, "paused", error)
    except AutointerpError as error:
        _end(store, row, "failed", error)
    except Halted as halted:
        _end(store, row, halted.state)
    except Interrupted:
        _end(store, row, job(store, row.id).wanted or "queued")
    else:
        _end(store, row, "done")


def _label(store: LabelStore, row: JobRow) -> None:
    """Start the run, or go on with it."""
    began = time.monotonic()
    from autointerp.config import parse_config
    from autointerp.pipeline.stages import STAGES
    from autointerp.pipeline.starting import start_run

    config = parse_config(row.request["config"], "the job's configuration")
    started = start_run(
        config, row.name, Path(row.folder), began, owner=row.owner, after=int(row.request.get("after", 0))
    )
    context = started.context
    change(store, row.id, was=("running",), run_id=context.run_id)
    if wanted := job(store, row.id).wanted:
        raise Halted(context.run_id, wanted)
    retry = bool(row.request.get("retry"))
    if started.finished and not retry:
        return
    shown = PlainDisplay(lambda line: print(line, flush=True), {stage.name: stage.unit for stage in STAGES})
    try:
        LocalDriver(context, STAGES, shown).run(retry=retry)
    except InputError as error:
        started.undo_if_nothing_done()
        if not store.has_run(context.run_id):
            change(store, row.id, was=("running",), run_id=None)
        else:
            context.store.set_run_state(context.run_id, "failed", str(error), unless=("paused", "cancelled", "done"))
        raise
    except (EndpointError, BudgetError):
        raise
    except AutointerpError as error:
        context.store.set_run_state(context.run_id, "failed", str(error), unless=("paused", "cancelled", "done"))
        raise


def _export(row: JobRow) -> None:
    """Write the run's dictionary as people's words have it by now."""
    from autointerp.pipeline.exporting import export_run
    from autointerp.pipeline.finding import find_run
    from autointerp.pipeline.starting import open_run

    where = Path(row.request["run_folder"])
    store, run_id = find_run(str(where) if where.is_dir() else str(row.run_id))
    context = open_run(store, run_id, where if where.is_dir() else None)
    try:
        manifest = export_run(context, Path(row.folder))
    finally:
        context.close()
    print(f"{manifest.num_rows:,} latents written", flush=True)


def _end(store: LabelStore, row: JobRow, state: str, error: AutointerpError | None = None) -> None:
    said = " ".join(str(error).split()) if error is not None else None
    kind = type(error).__name__ if error is not None else None
    change(store, row.id, was=("running",), state=state, wanted=None, error=said, error_kind=kind)
    print(f"{state}: {said}" if said else state, flush=True)


def _first_line() -> bytes:
    """The first line of the input, read without reading ahead."""
    line = bytearray()
    while (one := os.read(0, 1)) not in (b"", b"\n"):
        line += one
    return bytes(line)


def _end_with_the_server() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
