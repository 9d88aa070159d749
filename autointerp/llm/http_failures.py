"""What an HTTP status that is no success means for a call, with a server's own words as far as they help."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from autointerp.llm.call_errors import CallError, Denied, InvalidReply, RateLimited, Rejected, Transient
from autointerp.llm.foreign_text import shown
from autointerp.llm.validation import reported

_NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
"""Codes and types of errors that waiting does not mend, though they come as 429."""
_NO_ACCESS = {"invalid_api_key", "model_not_found"}
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")


def http_failure(status: int, headers: Mapping[str, str], body: str, *, key_name: str, key: str = "") -> CallError:
    """The error of a reply with that status.

    ``headers`` by their names in lower case. ``key_name``: what the key is called in messages, ``key``: what must not be in them.
    """
    said, codes = _said(body, key)
    because = f": {said}" if said else ""
    if codes & _NO_MONEY or status == 402:
        return Denied(f"there is no credit left for {key_name} (HTTP {status}){because}")
    if status == 401 or "invalid_api_key" in codes:
        # servers repeat parts of a wrong key, so their words are left out
        return Denied(f"the server does not accept {key_name} (HTTP {status})")
    if status == 403:
        return Denied(f"the server does not permit this to {key_name} (HTTP 403){because}")
    if status in (404, 405, 410) or codes & _NO_ACCESS:
        return Denied(f"the server does not know the model or the address (HTTP {status}){because}")
    if 300 <= status < 400 or status in (407, 421, 426, 511):
        where = shown(headers.get("location", ""), secret=key, limit=120)
        return Denied(
            f"the server sends elsewhere (HTTP {status}{', to ' + where if where else ''}), and a key is not sent on: "
            f"give the address itself as base_url"
        )
    if status == 429:
        return RateLimited(f"the server asks to wait (HTTP 429){because}", retry_after_s(headers))
    if status in (408, 504, 524):
        # a gateway that waited too long says nothing of the server behind it, which may go on and bill
        return Transient(
            f"the server took too long (HTTP {status}){because}", timed_out=True, maybe_paid=True, status=status
        )
    if status in (409, 425) or 500 <= status < 600:
        return Transient(f"the server failed (HTTP {status}){because}", status=status)
    if 400 <= status < 500:
        return Rejected(f"the server refuses the request (HTTP {status}){because}")
    return InvalidReply(f"the server answered with the status {status}")


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that ``retry-after-ms`` or ``retry-after`` (a number or a date) asks for; None where it is neither."""
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if _NUMBER.fullmatch(value):
            return float(value) * unit_s
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, TypeError, OverflowError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    wait_s = (date - (now or datetime.now(UTC))).total_seconds()
    return wait_s if math.isfinite(wait_s) and wait_s >= 0 else None


def _said(body: str, key: str) -> tuple[str, frozenset[str]]:
    """A server's words, and the codes and types of its error."""
    try:
        data: Any = json.loads(body)
    except (ValueError, RecursionError):
        text = body.lstrip()
        return ("a page of HTML or XML" if text.startswith("<") else shown(text, secret=key)), frozenset()
    error = data.get("error", data) if isinstance(data, dict) else data
    codes = [error.get("code"), error.get("type")] if isinstance(error, dict) else []
    return reported(data, secret=key), frozenset(code for code in codes if isinstance(code, str))
