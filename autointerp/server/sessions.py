"""Browsers that have shown a token: each has a cookie of its own, of which the store keeps a hash, until it logs out."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, insert, or_, select

from autointerp.server.tokens import LONGEST_SECRET, Token, digest_of, new_secret, token_named
from autointerp.store import LabelStore
from autointerp.store.column_types import utc_now
from autointerp.store.models import BrowserSession

COOKIE = "autointerp_session"
LASTS = timedelta(days=7)
_MOST = 20
"""Browsers of one token at a time; the one that logged in first is forgotten."""


def begin_session(store: LabelStore, token: Token) -> str:
    """The cookie for a browser that has shown this token; forgets those that ran out."""
    secret, now = new_secret(), utc_now()
    of_token = BrowserSession.token == token.name
    newest = select(BrowserSession.digest).where(of_token).order_by(BrowserSession.created_at.desc()).limit(_MOST - 1)
    with store.writing() as connection:
        kept = list(connection.execute(newest).scalars())
        connection.execute(
            delete(BrowserSession).where(
                or_(BrowserSession.expires_at <= now, of_token & BrowserSession.digest.not_in(kept))
            )
        )
        row = {"digest": digest_of(secret), "token": token.name, "created_at": now, "expires_at": now + LASTS}
        connection.execute(insert(BrowserSession), [row])
    return secret


def token_of_session(store: LabelStore, cookie: str) -> Token | None:
    """The token that the cookie's browser has shown, None where it must be shown again."""
    if len(cookie) > LONGEST_SECRET:
        return None
    now = utc_now()
    query = select(BrowserSession.token).where(
        BrowserSession.digest == digest_of(cookie), BrowserSession.expires_at > now
    )
    with store.reading() as connection:
        name = connection.execute(query).scalar()
    if name is None:
        return None
    token = token_named(store, name)
    return token if token.is_usable(now) else None


def end_session(store: LabelStore, cookie: str) -> None:
    """Log the browser out: the cookie opens nothing any more, whoever has it."""
    with store.writing() as connection:
        connection.execute(delete(BrowserSession).where(BrowserSession.digest == digest_of(cookie)))
