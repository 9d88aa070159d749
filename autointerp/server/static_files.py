"""Addresses of scripts and styles, with a digest, so that a browser may keep them until they change."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"


@cache
def static_url(name: str) -> str:
    """``/static/NAME?v=DIGEST``."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"
