"""Commands of runs that workers do: submit, status, pause, resume, cancel, retry-failed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autointerp.commands.opening import open_console

if TYPE_CHECKING:
    from autointerp.store import LabelStore

_RUN = typer.Argument(metavar="RUN", help="An output folder, a run id, or the beginning of one.")
_MOST_RUNS = 20
"""Runs that `status` shows at once."""
_STORE = typer.Option(help="Store in which to look for a run id; by default that of AUTOINTERP_STORE__URL.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(submit)
    app.command()(status)
    app.command()(pause)
    app.command()(resume)
    app.command()(cancel)
    app.command("retry-failed")(retry_failed)
    app.command()(fetch)


def submit(
    config: Annotated[Path, typer.Argument(help="The run's TOML file.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. extraction.num_tokens=500000."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder, which all workers see; by default runs/ and the file's name.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Your name for this submission: submitted again with the same key, it is the same run."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Another tool's protocol, for comparison with its published scores.")
    ] = None,
) -> None:
    """Store a run for the workers of a cluster to do, and return at once."""
    from autointerp.cluster.submitting import submit_run
    from autointerp.config import load_config

    given = list(sets or []) + ([f"preset={preset}"] if preset else [])
    parsed = load_config(config, given, os.environ)
    submitted = submit_run(parsed, config.stem, out or Path("runs") / config.stem, key=key)
    what = "submitted" if submitted.new else "was submitted before"
    if submitted.state in ("paused", "cancelled", "failed"):
        what += f", and is {submitted.state} (autointerp resume {submitted.run_id})"
    print(f"Run {submitted.run_id} {what}, in {submitted.folder}: autointerp status {submitted.run_id} --follow")


def status(
    target: Annotated[
        str,
        typer.Argument(
            metavar="[RUN|STORE|DIR]", help="A run id or its beginning, an output folder, or a store's file or URL."
        ),
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Show it until the run has ended.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all of them as JSON, and nothing else on stdout.")
    ] = False,
    all_: Annotated[bool, typer.Option("--all", help=f"Show all runs, not only the last {_MOST_RUNS} begun.")] = False,
    store: Annotated[str | None, _STORE] = None,
) -> None:
    """Show how far runs are, how quick, what they have spent, and who works on them."""
    import json

    from autointerp.report.run_status import follow_runs, print_status, read_status, status_json

    runs = _runs_of(target, store)
    if as_json:
        print(json.dumps([status_json(read_status(found, run_id)) for found, run_id in runs], indent=1))
        return
    earlier = 0 if all_ else max(0, len(runs) - _MOST_RUNS)
    said = f"{earlier:,} earlier {'run is' if earlier == 1 else 'runs are'} not shown: add --all, or name the run."
    if follow:
        if earlier:
            print(said)
        follow_runs(runs[earlier:], open_console())
        return
    for found, run_id in runs[earlier:]:
        print_status(read_status(found, run_id), open_console())
    if earlier:
        print(said)


def pause(run: Annotated[str, _RUN], store: Annotated[str | None, _STORE] = None) -> None:
    """Have a run rest: chunks under way are given back within seconds, what is done stays."""
    from autointerp.cluster.controlling import pause_run

    found, run_id = _find(run, store)
    pause_run(found, run_id)
    print(f"Run {run_id} is paused: autointerp resume {run_id}")


def resume(
    run: Annotated[str, _RUN],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a budget, price, address or device, e.g. budget.usd=20."
        ),
    ] = None,
    store: Annotated[str | None, _STORE] = None,
) -> None:
    """Let a run go on that was paused, cancelled, or failed for a cause that is mended."""
    from autointerp.cluster.controlling import resume_run

    found, run_id = _find(run, store)
    resume_run(found, run_id, sets or [])
    print(f"Run {run_id} goes on.")


def cancel(run: Annotated[str, _RUN], store: Annotated[str | None, _STORE] = None) -> None:
    """End a run as it is: what is done stays, the rest is never begun."""
    from autointerp.cluster.controlling import cancel_run

    found, run_id = _find(run, store)
    cancel_run(found, run_id)
    print(f"Run {run_id} is cancelled; its workers stop within seconds.")


def retry_failed(run: Annotated[str, _RUN], store: Annotated[str | None, _STORE] = None) -> None:
    """Try again what a server failed, and chunks that ended their process too often."""
    from autointerp.cluster.controlling import retry_failed as again
    from autointerp.pipeline.folder import RunFolder

    found, run_id = _find(run, store)
    count = again(found, run_id, RunFolder(Path(found.run(run_id).folder)))
    if not count:
        print(f"Run {run_id} has nothing to try again.")
        return
    state = found.run(run_id).state
    if state in ("paused", "cancelled"):
        print(f"{count:,} chunks of run {run_id} are to be tried again, and it is {state}: autointerp resume {run_id}")
        return
    print(f"{count:,} chunks of run {run_id} are tried again.")


def fetch(
    run: Annotated[str, _RUN],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to bring them to.")],
    store: Annotated[str | None, _STORE] = None,
) -> None:
    """Bring a run's results here from where its workers exchange files (AUTOINTERP_ARTEFACTS__URL)."""
    from autointerp.artefacts.settings import fetch_results

    found, run_id = _find(run, store)
    print(f"{fetch_results(found, run_id, folder):,} files of run {run_id} are in {folder}.")


def _find(run: str, store: str | None) -> tuple[LabelStore, str]:
    from autointerp.pipeline.finding import find_run

    return find_run(run, store)


def _runs_of(target: str, store: str | None) -> list[tuple[LabelStore, str]]:
    """The runs that are meant, the last begun last, each with its store. Errors: StoreError."""
    from autointerp.pipeline.finding import find_run, open_target, shared_store, stores_below
    from sae_core.errors import StoreError

    folder = Path(target or ".")
    is_file = folder.is_file() or "://" in target or "/" in target
    if target and not folder.is_dir() and not is_file:
        return [find_run(target, store)]
    if not target and store is None and (shared := shared_store()) is not None:
        stores = [shared]
    elif store is not None and not target:
        stores = [open_target(store)]
    else:
        # a folder that is no run's own: whatever runs lie below it
        below = folder.is_dir() and not any((folder / name).exists() for name in ("run.json", "autointerp.db"))
        stores = list(stores_below(folder)) if below else [open_target(target or ".")]
    if not stores:
        raise StoreError(f"no run was found below {str(folder.resolve())!r}: give an output folder, or a store's URL.")
    runs = [(run.created_at, run.id, found) for found in stores for run in found.runs()]
    return [(found, run_id) for _, run_id, found in sorted(runs, key=lambda run: run[:2])]
