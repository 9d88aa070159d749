"""How URLs are shown: without the passwords and keys that stand before the host, or among the parameters behind the question mark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, unquote_plus, urlsplit

if TYPE_CHECKING:
    from sqlalchemy import URL

HIDDEN = "***"
_PASSWORD = re.compile(r"(?<=://)([^:/?#@\s]*):([^/?#\s]*)@")
_PARAMETER = re.compile(r"([?&])([^=&?#\s]{1,80})=([^&#\s]*)")
_SECRET_NAME = re.compile(
    r"passw(or)?d|passphrase|pwd|secret|token|signature|credential|(access|account|api|private|session)[_-]?key|^(pass|key|sig)$",
    re.IGNORECASE,
)
"""Names of parameters whose values nobody but the server is to know; ``passfile`` and ``sslkey`` are paths."""


def without_password(text: str) -> str:
    """A URL, or a text with URLs in it, in which passwords and keys are ``***``."""
    return _PARAMETER.sub(_parameter, _PASSWORD.sub(rf"\1:{HIDDEN}@", text))


def shown_url(url: URL) -> str:
    """A database's URL to be shown or noted down."""
    return without_password(url.render_as_string(hide_password=True))


def secrets_in(url: str) -> Iterator[str]:
    """The passwords and keys of a URL, decoded. Errors: ValueError for what is no URL."""
    parts = urlsplit(url)
    if parts.password:
        yield unquote(parts.password)
    yield from (value for name, value in parse_qsl(parts.query) if _SECRET_NAME.search(name))


def _parameter(match: re.Match[str]) -> str:
    sign, name, value = match.groups()
    return f"{sign}{name}={HIDDEN}" if value and _SECRET_NAME.search(unquote_plus(name)) else match[0]
