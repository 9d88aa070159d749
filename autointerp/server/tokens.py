"""Tokens: 256 random bits, shown once, of which the store keeps a hash, what they allow, and until when."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from autointerp.server.access import Principal, Scope
from autointerp.store import LabelStore
from autointerp.store.column_types import utc_now
from autointerp.store.models import TokenRow
from sae_core.errors import InputError, StoreError, UnknownNameError, did_you_mean

NANO = 10**9
_PREFIX = "ait_"
"""By which a token is known where it should not be: in a log, in a repository."""
_BYTES = 32
LONGEST_SECRET = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_LARGEST = 2**62


class Token(NamedTuple):
    """What the store knows of a token; not its secret."""

    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None
    """None for never."""
    revoked_at: datetime | None
    max_jobs: int | None
    """Most jobs that it may have queued or under way; None for any number."""
    budget_tokens: int | None
    """Most tokens of language models that all its runs together may spend; None for no bound but each run's own."""
    budget_nano_usd: int | None

    def is_usable(self, now: datetime) -> bool:
        """Whether it still opens anything."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    @property
    def principal(self) -> Principal:
        """Whoever shows it."""
        return Principal(self.name, self.scopes, self.name)


_COLUMNS = (
    TokenRow.name, TokenRow.scopes, TokenRow.created_at, TokenRow.expires_at, TokenRow.revoked_at, TokenRow.max_jobs,
    TokenRow.budget_tokens, TokenRow.budget_nano_usd,
)  # fmt: skip


def new_secret() -> str:
    """A new token, or a new cookie."""
    return _PREFIX + secrets.token_urlsafe(_BYTES)


def digest_of(secret: str) -> str:
    """SHA-256, hexadecimal: a secret of 256 random bits needs no slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def add_token(
    store: LabelStore,
    name: str,
    scopes: Collection[Scope],
    *,
    lasts: timedelta | None = None,
    max_jobs: int | None = None,
    budget_tokens: int | None = None,
    budget_usd: float | None = None,
) -> str:
    """Add a token; its secret, which cannot be had again. Errors: InputError, StoreError where the name was given before."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"a token cannot be called {name[:60]!r}: give 1 to 40 letters, digits, '.', '_' and '-', a letter or digit first."
        )
    if not scopes:
        raise InputError(f"a token without a scope allows nothing: give --scope, one or more of {', '.join(Scope)}.")
    for what, value in (
        ("--expires", lasts / timedelta(days=1) if lasts is not None else None),
        ("--max-jobs", max_jobs),
        ("--budget-tokens", budget_tokens),
        ("--budget-usd", budget_usd * NANO if budget_usd is not None else None),
    ):
        if value is not None and not 0 < value <= _LARGEST:
            raise InputError(f"{what} must be more than 0 and a number that can be stored: leave it out for no bound.")
    secret = new_secret()
    row = {
        "name": name,
        "digest": digest_of(secret),
        "scopes": sorted(scope.value for scope in set(scopes)),
        "created_at": utc_now(),
        "expires_at": _after(lasts),
        "revoked_at": None,
        "max_jobs": max_jobs,
        "budget_tokens": budget_tokens,
        "budget_nano_usd": round(budget_usd * NANO) if budget_usd is not None else None,
    }
    try:
        with store.writing() as connection:
            connection.execute(insert(TokenRow), [row])
    except IntegrityError:
        raise StoreError(
            f"the name {name!r} was given before, and names are given once, since runs belong to them: choose another."
        ) from None
    return secret


def tokens(store: LabelStore) -> list[Token]:
    """All that there ever were, the oldest first."""
    with store.reading() as connection:
        rows = connection.execute(select(*_COLUMNS).order_by(TokenRow.created_at, TokenRow.name)).all()
    return [_token(row) for row in rows]


def token_named(store: LabelStore, name: str) -> Token:
    """Errors: UnknownNameError."""
    with store.reading() as connection:
        row = connection.execute(select(*_COLUMNS).where(TokenRow.name == name)).first()
    if row is None:
        known = [token.name for token in tokens(store)]
        more = did_you_mean(name, known) if known else "there is none yet."
        raise UnknownNameError(f"there is no token called {name[:60]!r}: {more}")
    return _token(row)


def revoke_token(store: LabelStore, name: str) -> None:
    """Let it open nothing from now on, browsers that showed it among them. Errors: UnknownNameError."""
    token_named(store, name)
    with store.writing() as connection:
        connection.execute(
            update(TokenRow).where(TokenRow.name == name, TokenRow.revoked_at.is_(None)).values(revoked_at=utc_now())
        )


def token_of(store: LabelStore, secret: str) -> Token | None:
    """The token whose secret this is, None where there is none or it is of no use any more."""
    if len(secret) > LONGEST_SECRET:
        return None
    digest = digest_of(secret)
    with store.reading() as connection:
        row = connection.execute(select(*_COLUMNS, TokenRow.digest).where(TokenRow.digest == digest)).first()
    # the look-up compares hashes, of which nobody can choose the beginning; this says it once more in constant time
    if row is None or not hmac.compare_digest(row.digest, digest):
        return None
    found = _token(row)
    return found if found.is_usable(utc_now()) else None


def has_tokens(store: LabelStore) -> bool:
    """Whether one was ever added: a server does not become open to everybody because the last one ran out."""
    with store.reading() as connection:
        return connection.execute(select(TokenRow.name).limit(1)).first() is not None


def has_usable_tokens(store: LabelStore) -> bool:
    """Whether somebody can log in."""
    now = utc_now()
    return any(token.is_usable(now) for token in tokens(store))


def _after(lasts: timedelta | None) -> datetime | None:
    if lasts is None:
        return None
    try:
        return utc_now() + lasts
    except OverflowError:
        raise InputError("--expires is beyond the calendar: leave it out for a token that does not expire.") from None


def _token(row: object) -> Token:
    values = {column.key: getattr(row, column.key) for column in _COLUMNS}
    # a scope of a later version allows nothing here
    values["scopes"] = frozenset(Scope(name) for name in values["scopes"] if name in set(Scope))
    return Token(**values)
