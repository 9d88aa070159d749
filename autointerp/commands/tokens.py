"""``autointerp token``: who may ask the server for what."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autointerp.store import LabelStore

app = typer.Typer(help="Make, list and revoke the tokens that open the server.", no_args_is_help=True)
_Home = Annotated[
    Path,
    typer.Option(help="The server's folder, as `autointerp serve` was given it; AUTOINTERP_STORE__URL comes first."),
]
_HOME = Path("runs")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What it is called; runs that it starts belong to this name.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it allows: read, review, submit, cancel, export, admin; once for each."),
    ] = None,
    expires: Annotated[float | None, typer.Option(metavar="DAYS", help="Days after which it opens nothing.")] = None,
    max_jobs: Annotated[int | None, typer.Option(help="Most jobs that it may have queued or under way.")] = None,
    budget_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of language models that all its runs together may spend.")
    ] = None,
    budget_usd: Annotated[float | None, typer.Option(help="The same in US dollars.")] = None,
    home: _Home = _HOME,
) -> None:
    """Make a token and print it, once: only a hash of it is kept."""
    from autointerp.server.access import Scope
    from autointerp.server.tokens import add_token
    from sae_core.errors import InputError, did_you_mean

    wanted = []
    for one in scope or ():
        known = [scope.value for scope in Scope]
        if one not in known:
            raise InputError(f"there is no scope {one!r}: {did_you_mean(one, known, len(known))}")
        wanted.append(Scope(one))
    lasts = _days(expires)
    store = _store(home, create=True)
    try:
        secret = add_token(
            store,
            name,
            wanted,
            lasts=lasts,
            max_jobs=max_jobs,
            budget_tokens=budget_tokens,
            budget_usd=budget_usd,
        )
    finally:
        store.close()
    print(secret)


@app.command("list")
def list_tokens(home: _Home = _HOME) -> None:
    """List all that there ever were, without their secrets."""
    from rich.table import Table
    from rich.text import Text

    from autointerp.commands.opening import open_console
    from autointerp.server.tokens import tokens
    from autointerp.store.column_types import utc_now

    store = _store(home, create=False)
    try:
        found = tokens(store)
    finally:
        store.close()
    if not found:
        print("There are no tokens: autointerp token add NAME --scope read makes one.")
        return
    now = utc_now()
    table = Table("name", "scopes", "made", "expires", "may have", box=None, pad_edge=False)
    for token in found:
        ends = f"{token.expires_at:%Y-%m-%d %H:%M} UTC" if token.expires_at else "never"
        state = "revoked" if token.revoked_at else ends if token.is_usable(now) else f"expired {ends}"
        bounds = [
            f"{token.max_jobs} jobs" if token.max_jobs is not None else "",
            f"{token.budget_tokens:,} tokens" if token.budget_tokens is not None else "",
            f"${token.budget_nano_usd / 1e9:,.2f}" if token.budget_nano_usd is not None else "",
        ]
        cells = [token.name, " ".join(sorted(token.scopes)), f"{token.created_at:%Y-%m-%d}", state]
        table.add_row(*map(Text, [*cells, ", ".join(bound for bound in bounds if bound)]))
    open_console().print(table)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The token's name; its runs stay, and the name is not given again.")],
    home: _Home = _HOME,
) -> None:
    """Let a token open nothing from now on, in no browser either."""
    from autointerp.server.tokens import revoke_token

    store = _store(home, create=False)
    try:
        revoke_token(store, name)
    finally:
        store.close()
    print(f"{name} opens nothing any more")


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app, name="token")


def _store(home: Path, *, create: bool) -> LabelStore:
    """The store that a server of this home reads. Errors: StoreError."""
    from autointerp.pipeline.folder import DATABASE
    from autointerp.store import open_store
    from autointerp.store.opening import sqlite_url

    url = os.environ.get("AUTOINTERP_STORE__URL")
    if not url:
        if create:
            home.mkdir(parents=True, exist_ok=True)
        url = sqlite_url(home / DATABASE)
    return open_store(url, create=create)


def _days(given: float | None) -> timedelta | None:
    from sae_core.errors import InputError

    if given is None:
        return None
    try:
        return timedelta(days=given)
    except (OverflowError, ValueError):
        raise InputError("--expires is beyond the calendar: leave it out for a token that does not expire.") from None
