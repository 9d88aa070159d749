"""Paths, hub ids and store URLs as a file gives them, looked up from its folder."""

from __future__ import annotations

import re
from pathlib import Path

from autointerp.config.sentences import shown
from sae_core.errors import ConfigError

STDLIB_CORPUS = "python-stdlib"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def is_hub_id(value: str) -> bool:
    """Whether a resolved ``model`` or ``path`` stands for something on the hub, not for a local path."""
    return not value.startswith("/") and _HUB_ID.fullmatch(value) is not None


def resolve_path(key: str, value: str, base: Path) -> str:
    """An absolute path where ``value`` is one (it exists, or looks like one and not like a hub id), else itself."""
    try:
        return _resolved(value, base)
    except (RuntimeError, ValueError, OSError) as error:  # ~nobody, a null character, a name too long
        raise ConfigError(
            f"{key} is {shown(value)}, which is no path that can be looked up ({error}): give the path of a file or folder "
            "that is there, or a hub id."
        ) from error


def _resolved(value: str, base: Path) -> str:
    local = (base / Path(value).expanduser()).resolve()
    looks_local = value.startswith(("/", "~", ".")) or not is_hub_id(value)
    # "quickstart/subjct" beside an existing "quickstart/" is a mistyped path, not a hub id
    beside = len(Path(value).parts) > 1 and local.parent.is_dir()
    return str(local) if local.exists() or looks_local or beside else value


def resolve_url(url: str, base: Path) -> str:
    """The URL of an SQLite file with its relative path resolved; any other URL as it is."""
    match = re.fullmatch(r"(sqlite(?:\+\w+)?:///)([^/:].*)", url)
    return f"{match[1]}{(base / match[2]).resolve()}" if match else url
