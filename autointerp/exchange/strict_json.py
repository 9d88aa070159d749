"""JSON that every reader takes: ASCII, without NaN, NUL characters and half surrogate pairs."""

from __future__ import annotations

import json
from typing import Any

from sae_core.errors import NonFiniteError

_NUL, _SHOWN_NUL = "\x00", "␀"


def plain_text(text: str) -> str:
    """The text with ``␀`` for NUL, which PostgreSQL does not take, and U+FFFD for half a surrogate pair."""
    if text.isascii():
        return text.replace(_NUL, _SHOWN_NUL)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace(_NUL, _SHOWN_NUL)


def json_line(value: Any, what: str) -> bytes:
    """One object on one line, with its line end. Errors: NonFiniteError, which names ``what``."""
    return json_bytes(value, what) + b"\n"


def json_bytes(value: Any, what: str) -> bytes:
    """One value without spaces; invisible characters and line separators are escapes. Errors: NonFiniteError."""
    try:
        text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise NonFiniteError(f"{what} has a figure that is not finite; nothing of it is written.") from error
    # Neuronpedia blanks the six characters of an escaped NUL wherever they stand, also behind an escaped backslash, where they are
    # text and what is left would be no JSON: the backslash is spelled out there
    return text.replace("\\\\u0000", "\\u005cu0000").encode("ascii")


def short_float(value: float) -> float:
    """A 32-bit figure with the digits that it has."""
    return float(f"{value:.8g}") if value else 0.0
