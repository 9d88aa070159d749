"""``autointerp nightly``: schedules by which a dictionary's labels are scored every night."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autointerp.commands.opening import open_console

if TYPE_CHECKING:
    from collections.abc import Iterable

    from autointerp.nightly.ticking import NightEvent
    from autointerp.store import LabelStore

nightly_app = typer.Typer(help="Score a dictionary's labels every night, and say what changed.", no_args_is_help=True)
_STORE_VARIABLE = "AUTOINTERP_STORE__URL"
_FOLDER = Path("nightly")
StoreOption = Annotated[
    str | None,
    typer.Option(help=f"Store of the schedules, a URL or folder; by default {_STORE_VARIABLE}, else {_FOLDER}/."),
]


@nightly_app.callback()
def _nightly() -> None:
    """Score a dictionary's labels every night, and say what changed."""


@nightly_app.command("set")
def set_(
    file: Annotated[Path, typer.Argument(help="The schedule's TOML file.")],
    store: StoreOption = None,
) -> None:
    """Add a schedule, or change the one of its name."""
    from datetime import timedelta

    from autointerp.nightly.base import night_config, night_sources, open_base
    from autointerp.nightly.book import set_schedule
    from autointerp.nightly.schedule import load_schedule
    from autointerp.nightly.times import begins_at, last_due
    from autointerp.store.column_types import utc_now

    schedule = load_schedule(file)
    opened = _store(store, create=True)
    with open_base(opened, schedule) as base:
        night_sources(night_config(schedule, base, {source.name: [0] for source in base.sources}), base)
    now = utc_now()
    set_schedule(opened, schedule, now)
    following = begins_at(schedule, last_due(schedule, now) + timedelta(days=1))
    print(f"schedule {schedule.name!r} is set: its next night begins at {following:%Y-%m-%d %H:%M} UTC")


@nightly_app.command("list")
def list_(store: StoreOption = None) -> None:
    """Show the schedules with their last nights."""
    from autointerp.nightly.book import nights, schedules
    from sae_core.errors import ConfigError

    opened = _store(store)
    kept = schedules(opened)
    if not kept:
        print("no schedule is set")
    for one in kept:
        try:
            schedule = one.schedule
            print(f"{schedule.name}: {schedule.run}, at {schedule.at} {schedule.timezone}, in {schedule.folder}")
        except ConfigError as error:
            print(f"{one.name}: {error}")
        for night in nights(opened, one.name, newest=3):
            drift = ", DRIFT" if night.report.get("drift") else ""
            print(f"  {night.date} {night.state}: {night.counts.get('scored', 0):,} labels scored{drift}")


@nightly_app.command("remove")
def remove(name: Annotated[str, typer.Argument(help="Name of the schedule.")], store: StoreOption = None) -> None:
    """Remove a schedule and the newest scores it knows; runs, snapshots and reports stay."""
    from autointerp.nightly.book import remove_schedule

    remove_schedule(_store(store), name)
    print(f"schedule {name!r} is removed")


@nightly_app.command("tick")
def tick_(
    store: StoreOption = None,
    work: Annotated[bool, typer.Option("--work", help="Do the nights' runs here, where no workers do.")] = False,
) -> None:
    """Begin, end and settle what is due; to be called every few minutes. Exit code 1 where something could not be done."""
    from autointerp.store.column_types import utc_now

    opened = _store(store)
    if work:
        from autointerp.nightly.working import tick_and_work
        from autointerp.pipeline.stages import STAGES
        from autointerp.progress import display

        with display(open_console(stderr=True), STAGES) as shown:
            events = tick_and_work(opened, utc_now, shown)
    else:
        from autointerp.nightly.ticking import tick

        events = tick(opened, utc_now())
    _print_events(events)
    if any(event.what == "error" for event in events):
        raise typer.Exit(1)


@nightly_app.command("report")
def report(
    name: Annotated[str, typer.Argument(help="Name of the schedule.")],
    date: Annotated[
        str | None, typer.Option(help="Date of the night, 2026-01-31; by default the last settled one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else on stdout.")] = False,
    store: StoreOption = None,
) -> None:
    """Say what a night scored, what changed, and whether the judge drifted."""
    import json

    from autointerp.nightly.book import find_schedule, settled_dates, settled_report
    from autointerp.nightly.report import report_text
    from sae_core.errors import UnknownNameError, did_you_mean

    opened = _store(store)
    find_schedule(opened, name)
    settled = settled_dates(opened, name)
    if not settled:
        raise UnknownNameError(
            f"the schedule {name!r} has no settled night yet: `autointerp nightly list` shows how far its nights are."
        )
    wanted = date or max(settled)
    if wanted not in settled:
        raise UnknownNameError(
            f"the schedule {name!r} has no settled night {wanted!r}: {did_you_mean(wanted, settled)}"
        )
    found = settled_report(opened, name, wanted)
    print(json.dumps(found, indent=1) if as_json else report_text(found), end="\n" if as_json else "")


def _print_events(events: Iterable[NightEvent]) -> None:
    for event in events:
        drift = ", the judge DRIFTED" if event.drift else ""
        run = f" ({event.run_id})" if event.run_id else ""
        message = f": {event.message}" if event.message else ""
        print(f"{event.schedule} {event.date} {event.what}{run}{drift}{message}")


def _store(given: str | None, *, create: bool = False) -> LabelStore:
    """The store of the schedules. Errors: StoreError."""
    from autointerp.pipeline.finding import open_target
    from autointerp.pipeline.folder import DATABASE
    from autointerp.store.opening import open_store, sqlite_url

    target = given or os.environ.get(_STORE_VARIABLE) or str(_FOLDER)
    if not create:
        return open_target(target)
    if "://" in target:
        return open_store(target)
    path = Path(target)
    if not path.is_file():
        path.mkdir(parents=True, exist_ok=True)
        path = path / DATABASE
    return open_store(sqlite_url(path))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(nightly_app, name="nightly")
