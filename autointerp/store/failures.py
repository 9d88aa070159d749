"""What a database says when it does not do as asked, as this program's own errors, and waiting until it is back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, IntegrityError

from autointerp.shown_url import without_password
from autointerp.store.dialects import BUSY_TIMEOUT_S
from sae_core.errors import AutointerpError, DiskFullError, StoreError, StoreUnavailableError

OUTAGE_S = 60.0
"""Longest that :func:`ride_out` waits for a database that is away."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
_AGAIN = "the same command goes on from here once that is so"
_FULL = "no room left for the store: free some space on its disk and run the same command again, it goes on from here."
_HELD = (
    f"the store has been held by another process for {BUSY_TIMEOUT_S} s: end that process, or wait for it, and "
    "run the same command again."
)

Result = TypeVar("Result")

_BY_STATE: dict[str, tuple[type[AutointerpError], str]] = {
    "53100": (DiskFullError, _FULL),
    "55P03": (StoreUnavailableError, _HELD),
    "40P01": (StoreUnavailableError, "two processes waited for each other in the store: run the same command again."),
    "40001": (StoreUnavailableError, "another process changed the same rows of the store: run the same command again."),
    "57014": (
        StoreUnavailableError,
        "the store's database ended a statement that took too long: see what keeps it busy (pg_stat_activity), "
        "and run the same command again.",
    ),
    "25006": (
        StoreUnavailableError,
        f"the store's database is a standby, which only reads: give the URL of the primary as store.url; {_AGAIN}.",
    ),
    "42501": (
        StoreError,
        "the user of store.url may not do this in the store's database: make it the owner of the database "
        "(ALTER DATABASE ... OWNER TO ...), or give another user.",
    ),
}
"""By SQLSTATE (postgresql.org/docs/current/errcodes-appendix.html)."""
_TOO_MANY = (
    "the store's database takes no more connections: raise max_connections in postgresql.conf, or start fewer workers; "
    f"{_AGAIN}."
)
_BY_WORDS: list[tuple[tuple[str, ...], type[AutointerpError], str]] = [
    (("disk is full", "No space left"), DiskFullError, _FULL),
    (("is locked",), StoreUnavailableError, _HELD),
    (("too many clients", "remaining connection slots", "too many connections"), StoreUnavailableError, _TOO_MANY),
    (
        ("password authentication failed", "no password supplied"),
        StoreError,
        "the store's database refuses the user or the password of store.url: give the right ones "
        "(special characters of a password as %XX: @ is %40, / is %2F).",
    ),
    (
        ("no pg_hba.conf entry",),
        StoreError,
        "the store's database lets nobody in from this host: add a line for it to the server's pg_hba.conf.",
    ),
]
"""What is said before there is a session carries no SQLSTATE."""


def own_error(error: DBAPIError) -> AutointerpError | None:
    """What a person can mend as an error of ours; None for what is a fault of the program."""
    if isinstance(error, IntegrityError):
        return None
    reason = str(error.orig)
    state = getattr(error.orig, "sqlstate", None) or ""
    if state in _BY_STATE:
        kind, sentence = _BY_STATE[state]
        return kind(sentence)
    for words, kind, sentence in _BY_WORDS:
        if any(word in reason for word in words):
            return kind(sentence)
    if 'database "' in reason and "does not exist" in reason:
        return StoreError(
            f"the store's server has no such database ({_line(reason)}): make it (createdb NAME), or give the name of "
            "one that is there in store.url."
        )
    if 'role "' in reason and "does not exist" in reason:
        return StoreError(f"the store's server has no such user ({_line(reason)}): make it (createuser NAME).")
    # classes 08 connection, 53 resources, 57P the server is being stopped or started, 25P03 idle too long
    gone = error.connection_invalidated or state[:2] in ("08", "53") or state[:3] == "57P" or state == "25P03"
    if gone or _never_connected(error):
        return StoreUnavailableError(
            f"the store's database does not answer ({_line(reason)}): start it, or mend store.url; {_AGAIN}."
        )
    return None


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise what a person can mend as an error of ours. Errors: StoreError, StoreUnavailableError, DiskFullError."""
    try:
        yield
    except DBAPIError as error:
        ours = own_error(error)
        if ours is None:
            raise
        raise ours from error


def ride_out(work: Callable[[], Result], outage_s: float = OUTAGE_S) -> Result:
    """Do ``work``, again and again while the database is away, for ``outage_s`` seconds at most.

    ``work`` must bear being done again after a commit whose answer was lost. Errors: StoreUnavailableError after that time.
    """
    give_up = time.monotonic() + outage_s
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            return work()
        except StoreUnavailableError:
            if time.monotonic() + wait_s > give_up:
                raise
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _never_connected(error: DBAPIError) -> bool:
    """psycopg's errors while connecting: an OperationalError without a statement and without an SQLSTATE."""
    orig = error.orig
    return (
        error.statement is None
        and type(orig).__module__.startswith("psycopg")
        and type(orig).__name__ in ("OperationalError", "ConnectionTimeout")
        and getattr(orig, "sqlstate", None) is None
    )


def _line(reason: str) -> str:
    """The last thing that the driver says, on one line."""
    lines = [line.strip().rstrip(".") for line in reason.splitlines() if line.strip()]
    hinted = [line for line in lines if not line.startswith(("Is the server running", "Multiple connection", "- "))]
    return without_password((hinted or lines or ["no reason given"])[0])[:200]
