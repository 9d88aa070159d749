"""Commands of whoever runs it for long: doctor, metrics, backup, restore, prune, delete, db."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autointerp.commands.opening import open_console

if TYPE_CHECKING:
    from autointerp.store import LabelStore

_STORE_HELP = "An output folder, a database file, or a store's URL; by default AUTOINTERP_STORE__URL."


def doctor(
    config: Annotated[
        Path | None, typer.Option(help="A run's TOML file, whose endpoints and device are tried.")
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of it.")] = None,
    queues: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Queues that must have a worker, such as llm,gpu,export,control.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder that runs are to be written to.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else on stdout.")] = False,
) -> None:
    """Check broker, database, workers, endpoints, GPU and disk, and say what is wrong and what to do."""
    import json
    from dataclasses import asdict

    from autointerp.operations.doctor import Examined, examine
    from autointerp.operations.findings import State

    asked = tuple(name.strip() for name in queues.split(",") if name.strip())
    console = open_console()
    found = []
    for finding in examine(Examined(config, tuple(sets or ()), asked, out)):
        found.append(finding)
        if not as_json:
            console.print(f"{finding.state:<8} {finding.check}: {finding.sentence}", markup=False, soft_wrap=True)
    bad = sum(finding.state is State.WRONG for finding in found)
    if as_json:
        print(json.dumps({"ok": not bad, "findings": [asdict(finding) for finding in found]}, indent=1))
    elif bad:
        console.print(f"{bad} of {len(found)} checks are wrong.", markup=False)
    if bad:
        raise typer.Exit(2)


def metrics(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve at; 0 for a free one.")] = 9464,
    address: Annotated[str, typer.Option(help="Address to serve at; 0.0.0.0 lets other machines ask.")] = "127.0.0.1",
    once: Annotated[bool, typer.Option("--once", help="Print them once, and serve nothing.")] = False,
    store: Annotated[str | None, typer.Option(help=_STORE_HELP)] = None,
) -> None:
    """Serve what Prometheus asks for: queues, chunks, runs, calls, spend, failures, workers."""
    from autointerp.operations.broker_check import open_broker
    from autointerp.operations.environment import given_broker, key_prefix
    from autointerp.operations.metrics import Scraper, registry_of, serve

    scraper = Scraper(_open(store), open_broker(given_broker()), prefix=key_prefix())
    if once:
        registry = registry_of(scraper)
        from prometheus_client import generate_latest

        print(generate_latest(registry).decode(), end="")
        return
    server, thread = serve(scraper, address, port)
    print(f"metrics are at http://{address}:{server.server_port}/metrics", flush=True)
    thread.join()


def backup(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; it must not be there yet.")],
    store: Annotated[str | None, typer.Option(help=_STORE_HELP)] = None,
) -> None:
    """Copy a store, whole, while others write to it. Run folders are not copied; the manifest says where they are."""
    from autointerp.operations.backup import back_up

    manifest = back_up(_url(store), target)
    print(
        f"{len(manifest.runs)} runs, {sum(manifest.rows.values()):,} rows, {manifest.num_bytes / 2**20:,.1f} MiB in {target}"
    )
    folders = sorted({run.folder for run in manifest.runs})
    if folders:
        print(f"not in it are the runs' folders, such as {folders[0]}: back them up as files.")


def restore(
    backup_folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `autointerp backup` made.")],
    store: Annotated[
        str | None,
        typer.Option(
            help="URL of the store to make: a file that is not there, or an empty database; by default AUTOINTERP_STORE__URL."
        ),
    ] = None,
) -> None:
    """Make a store out of a backup, and compare its rows with the manifest."""
    from autointerp.operations.backup import restore as restore_backup
    from autointerp.operations.environment import STORE_VARIABLE, given_store
    from autointerp.store.opening import sqlite_url
    from sae_core.errors import StoreError

    given = store or given_store()
    if not given:
        raise StoreError(
            f"no store is named: give --store with a URL or the path of a new file, or set {STORE_VARIABLE}."
        )
    manifest = restore_backup(backup_folder, given if "://" in given else sqlite_url(Path(given)))
    print(f"{len(manifest.runs)} runs, {sum(manifest.rows.values()):,} rows restored.")


def prune(
    older_than: Annotated[float, typer.Option(min=0, metavar="DAYS", help="Age at which raw replies go.")],
    run: Annotated[str | None, typer.Option(help="Of this run only.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and do nothing.")] = False,
    store: Annotated[str | None, typer.Option(help=_STORE_HELP)] = None,
) -> None:
    """Forget raw replies of language models, of runs that have ended; labels, scores and the ledger stay.

    Folders that killed exports left beside their dictionaries go as well.
    """
    from datetime import timedelta

    from autointerp.operations.pruning import prunable, remove_unfinished_exports
    from autointerp.operations.pruning import prune as prune_replies
    from autointerp.store.column_types import utc_now

    opened = _open(store)
    before = utc_now() - timedelta(days=older_than)
    found = prunable(opened, before, opened.run(run).id if run else None)
    for one in found:
        if not dry_run:
            prune_replies(opened, one, before)
        said = "would go" if dry_run else "went"
        print(f"{one.run_id}: {one.replies:,} replies, {one.num_bytes / 2**20:,.1f} MiB {said}")
    if not dry_run and (num := remove_unfinished_exports(opened, opened.run(run).id if run else None)):
        print(f"{num} unfinished exports of processes that were killed went")
    if not found:
        print(f"no run that has ended has replies older than {older_than:g} days.")
    elif not dry_run:
        print(
            "the database uses this room again; to give it back to the disk, run "
            + (
                "VACUUM in the file while nobody works."
                if opened.engine.dialect.name == "sqlite"
                else "VACUUM FULL llm_call."
            )
        )


def delete(
    run: Annotated[str, typer.Argument(metavar="RUN", help="An output folder, a run id, or the beginning of one.")],
    yes: Annotated[bool, typer.Option("--yes", help="Really delete it.")] = False,
    keep_files: Annotated[bool, typer.Option("--keep-files", help="Delete the rows, and leave the folder.")] = False,
    wait: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Time for workers to let go of it.")] = 120.0,
    force: Annotated[bool, typer.Option("--force", help="Also where another run or a schedule needs it.")] = False,
    store: Annotated[str | None, typer.Option(help="Store in which to look for a run id.")] = None,
) -> None:
    """Delete a run for good: cancel it, wait until nobody works on it, delete its rows and its folder."""
    from autointerp.operations.deleting import (
        check_folder_is_its_own,
        check_nobody_needs_it,
        delete_run,
        left_behind,
        remove_folder,
    )
    from autointerp.pipeline.finding import find_run
    from sae_core.errors import StoreError

    given = Path(run) if Path(run).is_dir() else None
    gone = None if given is None else left_behind(given)
    if given is not None and gone is not None:
        what = f"of the run {gone} only the folder {str(given)!r} is left, its rows are deleted"
        if keep_files or not yes:
            raise StoreError(f"{what}: add --yes, without --keep-files, to remove that too.")
        remove_folder(given)
        print(f"{what}: the folder is removed now")
        return
    opened, run_id = find_run(run, store)
    if not opened.has_run(run_id):
        raise StoreError(
            f"the store has no rows of the run {run_id}: they were deleted and the folder was kept, or the store is another one by now; see to "
            "the folder by hand."
        )
    record = opened.run(run_id)
    if not force:
        check_nobody_needs_it(opened, run_id, given)
    folder = None if keep_files else check_folder_is_its_own(opened, run_id, given)
    if not yes:
        files = f" and the folder {str(folder)!r}" if folder is not None else ""
        raise StoreError(
            f"this deletes the run {run_id} ({record.name}, {record.state}){files} for good: add --yes if that is meant."
        )
    console = open_console(stderr=True)
    rows = delete_run(
        opened,
        run_id,
        given=given,
        keep_files=keep_files,
        force=force,
        wait_s=wait,
        tell=lambda said: console.print(said, markup=False),
    )
    print(f"run {run_id} is deleted: {rows:,} rows" + (f" and {folder}" if folder is not None else ""))


db_app = typer.Typer(help="The revision of a store's tables.", no_args_is_help=True)


@db_app.callback()
def _db() -> None:
    """The revision of a store's tables."""


@db_app.command("current")
def db_current(store: Annotated[str | None, typer.Option(help=_STORE_HELP)] = None) -> None:
    """Print the revision that the tables have, and the one that this version needs."""
    from autointerp.operations.upgrading import revisions

    print(revisions(_url(store)).sentence)


@db_app.command("check")
def db_check(store: Annotated[str | None, typer.Option(help=_STORE_HELP)] = None) -> None:
    """Exit with 2 unless the tables have the revision that this version needs."""
    from autointerp.operations.upgrading import revisions
    from sae_core.errors import StoreError

    found = revisions(_url(store))
    if not found.fit:
        raise StoreError(found.sentence)
    print(found.sentence)


@db_app.command("upgrade")
def db_upgrade(store: Annotated[str | None, typer.Option(help=_STORE_HELP)] = None) -> None:
    """Bring the tables to the revision that this version needs; all of it happens or nothing."""
    from autointerp.operations.upgrading import revisions
    from autointerp.store import open_store

    url = _url(store)
    before = revisions(url)
    open_store(url, upgrade=True).close()
    print(f"before: {before.sentence}\nnow: {revisions(url).sentence}")


def _open(store: str | None) -> LabelStore:
    """The store that is given, else the environment's. Errors: StoreError."""
    from autointerp.store import open_store

    return open_store(_url(store), create=False)


def _url(store: str | None) -> str:
    """Its URL; nothing is opened. Errors: StoreError."""
    from autointerp.operations.environment import STORE_VARIABLE, given_store
    from autointerp.operations.upgrading import url_of
    from sae_core.errors import StoreError

    given = store or given_store()
    if not given:
        raise StoreError(
            f"no store is named: give --store with an output folder, a database file or a URL, or set {STORE_VARIABLE}."
        )
    return url_of(given)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (doctor, metrics, backup, restore, prune, delete):
        app.command()(command)
    app.add_typer(db_app, name="db")
