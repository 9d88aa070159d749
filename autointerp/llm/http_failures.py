"""What an HTTP status that is no success means for a call, and the body of a success that is no reply; with a server's own
words as far as they help."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from autointerp.llm.call_errors import (
    CallError,
    Denied,
    Forbidden,
    InvalidReply,
    NoReply,
    RateLimited,
    Refused,
    Rejected,
    Transient,
)
from autointerp.llm.foreign_text import shown
from autointerp.llm.validation import json_kind, reported, reported_error

_NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
"""Codes and types of errors that waiting does not mend, though they come as 429."""
_NO_ACCESS = {"invalid_api_key", "model_not_found"}
_TOO_MANY = {"rate_limit_exceeded", "rate_limit_error", "rate_limited", "too_many_requests", "throttlingexception"}
_MODERATED = {"responsibleaipolicyviolation", "prompt_blocked", "safety", "sensitive_content", "inappropriate_content"}
_MODERATED_PART = ("content_filter", "content_policy", "moderation", "data_inspection", "policy_violation")
_MODERATION_SAID = re.compile(
    r"content[ _-]?(filter|policy|management)|requires moderation|(input|prompt|content|text)\b[^.]{0,40}\bflagged",
    re.I,
)
_ACCOUNT_SAID = re.compile(r"\b(account|organi[sz]ation|api key|subscription)\b", re.I)
"""Words of a refusal that is about us and not about the prompt."""
_TYPES = (
    ({"authentication_error", "unauthorized"}, 401),
    ({"permission_error", "permission_denied", "forbidden"}, 403),
    ({"not_found_error", "notfounderror"}, 404),
    ({"timeout", "timeout_error", "gateway_timeout", "deadline_exceeded"}, 504),
    ({"invalid_request_error", "badrequesterror", "context_length_exceeded", "invalid_argument"}, 400),
)
"""Statuses that servers' types of errors stand for, where they come with the status of a success; others are 500."""
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
_ANSWERED = re.compile(r'"choices"\s*:\s*\[\s*\{')
"""In a JSON text it stands in no string, where quotation marks have a backslash before them."""
_STREAMED = ("data:", "event:", "id:", "retry:", ":")


def http_failure(status: int, headers: Mapping[str, str], body: str, *, key_name: str, key: str = "") -> CallError:
    """The error of a reply with that status.

    ``headers`` by their names in lower case. ``key_name``: what the key is called in messages, ``key``: what must not be in them.
    """
    said, codes = _said(body, key)
    return _failure(status, f"HTTP {status}", headers, said, codes, key_name=key_name, key=key)


def false_success(body: str, *, key_name: str, key: str = "") -> CallError | None:
    """The error of a body that came with the status of a success and is no reply of the API; None for one, valid or not.

    An error object, as gateways send it, means what its status would. All else is trouble of the server, or of what stands
    before it: a page for people, nothing, an event stream, a reply without an answer.
    """
    start = body[:1000].lstrip() or body.lstrip()[:1000]
    if start.startswith("{") and _ANSWERED.search(body):
        return None
    if not start:
        return NoReply("the reply is empty")
    if start.startswith("<"):  # like a gateway's page with 502, which costs nothing
        return NoReply("the reply is a page of HTML or XML, not JSON: does base_url name the API?", maybe_paid=False)
    if start.startswith(_STREAMED):
        return NoReply("the reply is an event stream, which was not asked for")
    try:
        data: Any = json.loads(body)
    except RecursionError:
        return None
    except ValueError:
        # a reply that was cut off is the API's
        return (
            None if start.startswith("{") else NoReply(f"the reply is not JSON: it begins with {_short(start, key)!r}")
        )
    if not isinstance(data, dict):
        return NoReply(f"the reply is a JSON {json_kind(data)}, not an object")
    if data.get("choices"):
        return None
    if not reported_error(data):
        return NoReply("the reply has no choices", body)
    said, codes = _said(body, key)
    return _failure(_status_meant(said, codes), "HTTP 200 with an error", {}, said, codes, key_name=key_name, key=key)


def _status_meant(said: str, codes: frozenset[str]) -> int:
    """The status with which an error object should have come."""
    for code in sorted(codes):
        if re.fullmatch(r"[45][0-9][0-9]", code):
            return int(code)
    if codes & _TOO_MANY or re.search(r"rate.?limit|too many requests", said, re.I):
        return 429
    return next((status for types, status in _TYPES if codes & types), 400 if _moderated(said, codes) else 500)


def _moderated(said: str, codes: frozenset[str]) -> bool:
    if codes & _MODERATED or any(part in code for code in codes for part in _MODERATED_PART):
        return True
    return _MODERATION_SAID.search(said) is not None and _ACCOUNT_SAID.search(said) is None


def _failure(
    status: int,
    where: str,
    headers: Mapping[str, str],
    said: str,
    codes: frozenset[str],
    *,
    key_name: str,
    key: str,
) -> CallError:
    because = f": {said}" if said else ""
    if codes & _NO_MONEY or status == 402:
        return Denied(f"there is no credit left for {key_name} ({where}){because}")
    if status == 401 or "invalid_api_key" in codes:
        # servers repeat parts of a wrong key, so their words are left out
        return Denied(f"the server does not accept {key_name} ({where})")
    if 400 <= status < 500 and status not in (407, 408, 429) and not codes & _NO_ACCESS and _moderated(said, codes):
        return Refused(f"the server's moderation refuses the prompt ({where}){because}")
    if status == 403 and not codes & _NO_ACCESS:
        if codes & _TOO_MANY:
            return RateLimited(f"the server asks to wait ({where}){because}", retry_after_s(headers))
        return Forbidden(f"the server does not permit this to {key_name} ({where}){because}")
    if status in (404, 405, 410) or codes & _NO_ACCESS:
        return Denied(f"the server does not know the model or the address ({where}){because}")
    if 300 <= status < 400 or status in (407, 421, 426, 511):
        where = shown(headers.get("location", ""), secret=key, limit=120)
        return Denied(
            f"the server sends elsewhere ({where}{', to ' + where if where else ''}), and a key is not sent on: "
            f"give the address itself as base_url"
        )
    if status == 429:
        return RateLimited(f"the server asks to wait ({where}){because}", retry_after_s(headers))
    if status in (408, 504, 524):
        # a gateway that waited too long says nothing of the server behind it, which may go on and bill
        return Transient(f"the server took too long ({where}){because}", timed_out=True, maybe_paid=True, status=status)
    if status in (409, 425) or 500 <= status < 600:
        return Transient(f"the server failed ({where}){because}", status=status)
    if 400 <= status < 500:
        return Rejected(f"the server refuses the request ({where}){because}")
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
    """A server's words, and the codes, types and statuses of its error in lower case."""
    try:
        data: Any = json.loads(body)
    except (ValueError, RecursionError):
        text = body.lstrip()
        return ("a page of HTML or XML" if text.startswith("<") else shown(text, secret=key)), frozenset()
    error = data.get("error", data) if isinstance(data, dict) else data
    codes: list[Any] = []
    for place in (data, error, error.get("innererror") if isinstance(error, dict) else None):
        if isinstance(place, dict):
            codes += [place.get("code"), place.get("type"), place.get("status")]
    return reported(data, secret=key), frozenset(str(code).lower() for code in codes if type(code) in (str, int))


def _short(text: str, key: str) -> str:
    return shown(text, secret=key, limit=60)
