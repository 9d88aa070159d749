"""Words of a server, made fit: for our messages (short, one line, nothing that a terminal obeys, no key) and for storing."""

from __future__ import annotations

import re

_NO_CHARACTER = re.compile("[\x00\ud800-\udfff]")

LIMIT_CHARS = 300
"""As much of a server's message as is shown."""


def shown(text: str, *, secret: str = "", limit: int = LIMIT_CHARS) -> str:
    """A server's text as a part of one of our sentences; ``secret`` is taken out wherever it stands."""
    # taken out before the text is cut, so that no part of it is left at the end
    text = without(text[: 16 * limit + 2 * len(secret)], secret)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def without(text: str, secret: str) -> str:
    """The text with ``[key]`` in the place of the secret; "" is no secret."""
    return text.replace(secret, "[key]") if secret and secret in text else text


def clean(text: str) -> str:
    """A text without what no database takes: NUL becomes U+2400, half a character U+FFFD."""
    if not _NO_CHARACTER.search(text):
        return text
    return _NO_CHARACTER.sub(lambda found: "\u2400" if found.group() == "\x00" else "\ufffd", text)
