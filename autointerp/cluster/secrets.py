"""Passwords of the database and the broker, read from files, so that they stand in no environment and no configuration."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, urlsplit

from sae_core.errors import ConfigError

_MAX_BYTES = 4096
"""More than any password; a file that is longer was named by mistake."""


def with_password(url: str, path: str | os.PathLike[str] | None) -> str:
    """``url`` with the password that stands in the file ``path``, quoted, or as it is where no file is named.

    A line break at the file's end is no part of the password.

    Errors: ConfigError for a file that cannot be read, is empty, is longer than 4 KiB or has more than one line, and for a URL
    that has no host or has a password already. No message shows a password.
    """
    if path is None:
        return url
    password = _read(Path(path))
    parts = urlsplit(url)
    account, _, place = parts.netloc.rpartition("@")
    if not parts.scheme or not place:
        raise ConfigError(
            f"the password in {str(path)!r} is for a URL that has no host: give one such as "
            "postgresql+psycopg://user@host/database or redis://host:6379/0."
        )
    if ":" in account:
        raise ConfigError(
            f"the URL of {place!r} has a password already, and {str(path)!r} gives another: leave out one of the two."
        )
    return parts._replace(netloc=f"{account}:{quote(password, safe='')}@{place}").geturl()


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"the password file {str(path)!r} cannot be read ({reason}): give a file with the password in its first line."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the password file {str(path)!r} is not UTF-8 text: put the password into it.") from error
    if not text:
        raise ConfigError(f"the password file {str(path)!r} is empty: put the password into it.")
    if len(data) > _MAX_BYTES or not text.isprintable():
        raise ConfigError(
            f"the password file {str(path)!r} has more than one line of plain text: put the password into it, and nothing else."
        )
    return text
