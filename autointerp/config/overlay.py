"""Settings of the environment and of ``--set`` laid over the tables of a file."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping
from typing import Any

from autointerp.config.keys import annotation_at
from autointerp.config.run import RunConfig
from sae_core.errors import ConfigError

ENVIRONMENT_PREFIX = "AUTOINTERP_"
RESERVED_VARIABLES = frozenset({"AUTOINTERP_CACHE", "AUTOINTERP_CACHE_GIB", "AUTOINTERP_FAULT", "AUTOINTERP_LOG"})
"""Variables with our prefix that are no settings of a run."""
RESERVED_BEGINNINGS = (
    "AUTOINTERP_BROKER__",
    "AUTOINTERP_WORKER__",
    "AUTOINTERP_ARTEFACTS__",
    "AUTOINTERP_STORE__PASSWORD_FILE",
)
"""Those of a cluster's processes (autointerp.cluster.settings)."""


def environment_values(environment: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """``(dotted key, value, origin)`` of every setting in the environment: AUTOINTERP_CORPUS__PATH is corpus.path."""
    return [
        (name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."), value, f"the environment variable {name}")
        for name, value in sorted(environment.items())
        if name.startswith(ENVIRONMENT_PREFIX)
        and name not in RESERVED_VARIABLES
        and not name.startswith(RESERVED_BEGINNINGS)
    ]


def lay_over(data: dict[str, Any], key: str, text: str, origin: str) -> None:
    """Set the dotted ``key`` of nested tables and lists to ``text``, read as a TOML value where it is one."""
    parts = key.split(".")
    place: Any = data
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(place, list):
            if not part.isdecimal() or int(part) > len(place):
                raise ConfigError(
                    f"{origin}: {'.'.join(parts[:depth])!r} is a list of {len(place)}; "
                    f"{part!r} must be a number from 0 to {len(place)} (the last one appends)."
                )
            index = int(part)
            if index == len(place):
                place.append({})
            if last:
                place[index] = _value(key, text)
            else:
                place = place[index]
        elif isinstance(place, dict):
            if last:
                place[part] = _value(key, text)
            else:
                following = parts[depth + 1]
                place = place.setdefault(part, _default_tables(part) if following.isdecimal() else {})
        else:
            raise ConfigError(f"{origin}: {'.'.join(parts[:depth])!r} is a single value and has no key {part!r}.")


def _default_tables(key: str) -> list[Any]:
    """What a list holds where the file leaves it out, so that ``explainers.0.x`` means the default explainer's x."""
    field = RunConfig.model_fields.get(key)
    return copy.deepcopy(list(field.default)) if field is not None and isinstance(field.default, tuple) else []


def _value(key: str, text: str) -> Any:
    """``text`` as TOML, except for keys that hold text: a revision of digits stays text."""
    if annotation_at(key.split(".")) in (str, str | None):
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
