"""Templates: everything is escaped, and numbers are written as reports write them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel
from starlette.responses import HTMLResponse

from autointerp.report.figures import (
    UNDEFINED,
    interval_text,
    percent_text,
    rate_text,
    share_text,
    signed_text,
    size_text,
)
from autointerp.report.highlight import plain_line
from autointerp.server.access import principal_of
from autointerp.server.static_files import static_url
from autointerp.shown_url import without_password

_TEMPLATES = Path(__file__).parent / "templates"
SIGNED = (
    "causal_effect",
    "causal_random",
    "causal_z",
    "steering_effect",
    "delta_ce",
    "control_delta_ce",
    "attribution_ce",
)
"""Beginning of the names of figures that are differences or logarithms of ratios."""
STRENGTHS = 8
"""Shades of a token."""


def page(
    request: Request,
    template: str,
    view: BaseModel,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> HTMLResponse:
    """A view on its page."""
    principal = principal_of(request)
    known = principal.name if principal is not None and principal.token_id is not None else None
    given = {"view": view, "path": request.url.path, "query": request.url.query, "known_as": known, **more}
    text = _environment().get_template(template).render(given)
    return HTMLResponse(text, status_code=status, headers=dict(headers) if headers else None)


@cache
def _environment() -> Environment:
    # escaping for every template, whatever its ending
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": share_text,
        "signed": signed_text,
        "percent": percent_text,
        "size": size_text,
        "rate": rate_text,
        "figure": figure_text,
        "plain": lambda text: plain_line(text or ""),
        "part": lambda text: quote(str(text), safe=""),
        "params": lambda pairs: urlencode([(name, value) for name, value in pairs if value not in (None, "")]),
        "shade": lambda strength: min(int(strength * STRENGTHS) + 1, STRENGTHS) if strength > 0 else 0,
        "place": place_text,
        "duration": duration_text,
        "words": lambda name: str(name).replace("_", " "),
    }
    environment.globals |= {"SIGNED": SIGNED, "interval": interval_text, "static": static_url, "UNDEFINED": UNDEFINED}
    return environment


def place_text(given: str) -> str:
    """A hub id as it is; of a folder its last two parts, since where it lies is nobody else's business."""
    return "/".join(Path(given).parts[-2:]) if Path(given).is_absolute() else without_password(given)


def figure_text(value: float | None, name: str) -> str:
    """A figure of the dictionary by its name: rates as shares of a hundred, effects with their sign, counts whole."""
    if value is None:
        return UNDEFINED
    if name.endswith("_rate") and not name.startswith("written"):
        return rate_text(value)
    if name.startswith(SIGNED):
        return signed_text(value)
    if abs(value) > 1 or name.startswith(("num_", "fire_count")):
        return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:,.3g}"
    # a KL of .0039 nats is not .00
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else share_text(value)


def duration_text(seconds: float | None) -> str:
    """``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds is None:
        return UNDEFINED
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
