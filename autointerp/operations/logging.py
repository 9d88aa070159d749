"""Structured logs: one JSON object a line with what a line is about, without secrets, prompts, replies or control characters."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import IO, Any
from urllib.parse import quote, unquote

from autointerp.shown_url import secrets_in, without_password

FIELDS = ("event", "run", "stage", "chunk", "queue", "worker")
"""What a line may be about, beside time, level, logger and message; given as ``extra``, or by :func:`log_event`."""
REDACTED = "***"
_LONGEST_MESSAGE = 1_000
"""Characters; a library that logs what it sends is cut off."""
_LONGEST_FIELD = 200
_MOST_FRAMES = 30
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
_SHORTEST_SECRET = 6
"""Shorter values would black out ordinary words."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""Control characters, and those that turn the direction of text or are not seen."""
_TOKEN = re.compile(r"\bait_[A-Za-z0-9_-]{16,}")
"""Tokens of the server and cookies of its browsers, of which no process keeps a list to compare with."""
_STATEMENT = re.compile(r"\[(SQL|parameters): .*", re.DOTALL)
"""What SQLAlchemy appends to its errors: whole rows, with prompts and replies."""

_lock = threading.Lock()
_secrets: set[str] = set()


def redact_values(values: Iterable[str]) -> None:
    """Never show these values in a log of this process, as they are or as in a URL."""
    with _lock:
        for value in values:
            for form in (value, value.strip(), quote(value, safe=""), unquote(value)):
                if len(form) >= _SHORTEST_SECRET:
                    _secrets.add(form)


def redact_environment(environment: Mapping[str, str], named: Iterable[str] = ()) -> None:
    """Redact the variables that hold secrets by their name, the ``named`` ones, and the passwords and keys in URLs.

    ``named``: what endpoints name in ``api_key_env``.
    """
    wanted = set(named)
    for name, value in environment.items():
        if name in wanted or _SECRET_NAME.search(name.upper()):
            redact_values([value])
        if "://" in value:
            try:
                redact_values(list(secrets_in(value)))
            except ValueError:
                continue


def redact_config(config: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> None:
    """Redact the keys of a run's endpoints; ``config`` is a run's stored configuration."""
    tables = config.get("endpoints") or ()
    names = [str(table["api_key_env"]) for table in tables if isinstance(table, Mapping) and table.get("api_key_env")]
    redact_environment(os.environ if environment is None else environment, names)


def clean(text: str, limit: int = _LONGEST_MESSAGE) -> str:
    """Text for a log: without secrets and passwords, control characters shown as ``\\x1b``, and of bounded length."""
    text = without_password(_STATEMENT.sub("[statement left out]", text))
    with _lock:
        secrets = sorted(_secrets, key=len, reverse=True)
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    text = _CONTROL.sub(_escaped, _TOKEN.sub(REDACTED, text))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def log_event(logger: logging.Logger, level: int, event: str, message: str, **about: Any) -> None:
    """Log that something happened; ``about``: of :data:`FIELDS`."""
    unknown = about.keys() - set(FIELDS)
    assert not unknown, f"no field of a log line: {sorted(unknown)}"
    logger.log(level, "%s", message, extra={"event": event, **about})


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": clean(record.name, _LONGEST_FIELD),
        }
        line |= _about(record)
        line["message"] = clean(_message(record))
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = _errors(record.exc_info[1])
            line["trace"] = _frames(record.exc_info[1])
        return json.dumps(line, ensure_ascii=True)


class PlainFormatter(logging.Formatter):
    """The same for people: one line, what it is about at the end."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S")
        about = "".join(f" {name}={value}" for name, value in _about(record).items())
        line = f"{time} {record.levelname.lower():<8} {clean(_message(record))}{about}"
        if record.exc_info and record.exc_info[1] is not None:
            line += (
                f" error={_errors(record.exc_info[1])} trace={' < '.join(reversed(_frames(record.exc_info[1])[-5:]))}"
            )
        return line


def configure_logs(as_json: bool, *, level: int = logging.INFO, stream: IO[str] | None = None) -> logging.Handler:
    """Make this process' root logger write such lines to ``stream`` (stderr), and nothing else; the handler.

    Secrets of the environment are redacted from now on; those of a run's endpoints from :func:`redact_config` on.
    """
    redact_environment(os.environ)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else PlainFormatter())
    root = logging.getLogger()
    for before in list(root.handlers):
        root.removeHandler(before)
    root.addHandler(handler)
    root.setLevel(level)
    for chatty in ("httpx", "httpx2", "httpcore", "openai", "aiohttp", "sqlalchemy", "urllib3", "asyncio"):
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))  # some log requests' bodies
    logging.captureWarnings(True)
    return handler


def _about(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in FIELDS:
        value = getattr(record, name, None)
        if value is not None:
            found[name] = value if type(value) is int else clean(str(value), _LONGEST_FIELD)
    return found


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a log line that cannot be made must not end the work
        return str(record.msg)


def _errors(error: BaseException) -> str:
    """An error and what it came from, by type and message."""
    said: list[str] = []
    one: BaseException | None = error
    while one is not None and len(said) < 4:
        said.append(f"{type(one).__name__}: {clean(str(one), 400)}")
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return " <- ".join(said)


def _frames(error: BaseException) -> list[str]:
    """Where it was raised, the innermost last: places only, no lines of source and no values."""
    frames = traceback.extract_tb(error.__traceback__)[-_MOST_FRAMES:]
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
