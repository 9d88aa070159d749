"""Settings that follow the protocols of other tools, so that scores can be compared with published ones.

A preset is a TOML file beside this module; ``preset = "delphi"`` in a configuration lays it under the user's own keys, which
win. What a preset says of numbers and formulas is that of the named protocol; windows, prompts and sides are ours.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Any

from sae_core.errors import ConfigError, did_you_mean


def presets() -> list[str]:
    """Names of all presets."""
    names = (item.name for item in files("autointerp.presets").iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def preset(name: str) -> dict[str, Any]:
    """The tables of a preset, as a configuration file has them. Errors: ConfigError for a name that is not known."""
    known = presets()
    if name not in known:
        raise ConfigError(f"there is no preset {name!r}: {did_you_mean(name, known)}")
    return tomllib.loads((files("autointerp.presets") / f"{name}.toml").read_text(encoding="utf-8"))
