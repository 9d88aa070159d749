"""Column types that treat every database alike: no NaN, no infinity, no NUL, no lone surrogate, UTC times.

SQLite stores NaN as NULL and keeps infinity, PostgreSQL refuses NUL in text: what one refuses, all refuse.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Double, String, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from sae_core.errors import NonFiniteError

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
"""Made once: json.dumps would make one for every value."""


class FiniteFloat(TypeDecorator[float]):
    """A double that is a number. Errors: NonFiniteError."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        if value is None:
            return None
        number = float(value)
        if not math.isfinite(number):
            raise NonFiniteError(
                f"{number} was to be stored as a value; a value that is not defined is stored as nothing."
            )
        return number


class SafeText(TypeDecorator[str]):
    """Text in which NUL is shown as ␀ and a lone surrogate as �."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return value.replace("\x00", "␀").encode("utf-8", "surrogatepass").decode("utf-8", "replace")


class JsonText(TypeDecorator[Any]):
    """A JSON value as ASCII text (so that any string survives in any database). Errors: NonFiniteError."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        if value is None:
            return None
        try:
            return _ENCODER.encode(value)
        except ValueError as error:
            raise NonFiniteError(f"NaN or infinity in a value that was to be stored: {str(value)[:120]}") from error

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class UtcTime(TypeDecorator[datetime]):
    """A time in UTC as ISO 8601 text, 2026-01-31T12:00:00.000000+00:00, which sorts as it runs."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        return None if value is None else value.astimezone(UTC).isoformat(timespec="microseconds")

    def process_result_value(self, value: str | None, dialect: Dialect) -> datetime | None:
        return None if value is None else datetime.fromisoformat(value)


def utc_now() -> datetime:
    """The time now, in UTC."""
    return datetime.now(UTC)
