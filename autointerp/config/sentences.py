"""Complaints about a configuration, in one sentence each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails

from autointerp.config.keys import described, known_keys
from sae_core.errors import did_you_mean


def sentence_of(error: ErrorDetails, origin: str, origins: Mapping[str, str]) -> str:
    """One pydantic error as one sentence: what was given, what is allowed, what to do."""
    # a union adds the branch it tried to the location: not a part of the key
    parts = [str(p) for p in error["loc"] if isinstance(p, int) or re.fullmatch(r"\w+", p)]
    if parts[:1] == ["latents"]:
        parts = ["latents"]
    key = ".".join(parts)
    where = next((f"({origins[k]})" for k in origins if k == key or k.startswith(key + ".")), f"in {origin}")
    if error["type"] == "extra_forbidden":
        given = error["input"]
        if isinstance(given, dict) and given:
            key = f"{key}.{next(iter(given))}"  # a mistyped table: name the key as the user thinks of it
        generic = re.sub(r"\.\d+(?=\.|$)", ".0", key)
        level = [k for k in known_keys() if k.count(".") == generic.count(".")] or known_keys()
        return f"unknown key {key!r} {where}: {did_you_mean(generic, level, limit=3)}"
    if error["type"] == "missing":
        return f"the key {key!r} is missing {where}: {described(parts)}"
    if parts == ["latents"]:
        allowed = 'it must be "all", a range such as "0:512", or a list of numbers from 0 on'
        reason = error["msg"].removeprefix("Value error, ") if error["type"] == "value_error" else allowed
        return f"{key!r} is {shown(error['input'])} {where}: {reason}."
    rule = error["msg"].removeprefix("Value error, ").replace("Input should", "it must").rstrip(".")
    rule = rule.replace("Tuple should have", "it must be a list of").replace(" after validation", "")
    return f"{key!r} is {shown(error['input'])} {where}: {rule}. {described(parts)}".rstrip()


def shown(value: Any) -> str:
    """A given value as it fits a sentence."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
