"""Which version of the code writes a row."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def code_version() -> str:
    """Version of the installed package."""
    try:
        return version("autointerp")
    except PackageNotFoundError:
        return "unknown"
