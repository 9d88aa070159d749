"""Finds the formats by scanning this package and by entry points of the group ``autointerp.exchange``: a new one is one module."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from autointerp.exchange.base import ExchangeFormat
from sae_core.errors import ConfigError, InputError, UnknownNameError, did_you_mean


@cache
def known_formats() -> Mapping[str, type[ExchangeFormat]]:
    """Classes of formats by kind. Errors: ConfigError where two claim one kind, or an entry point loads no format."""
    package = importlib.import_module("autointerp.exchange")
    classes: list[Any] = []
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(info.name)
        classes += [
            member
            for _, member in inspect.getmembers(module, inspect.isclass)
            if issubclass(member, ExchangeFormat) and not inspect.isabstract(member) and member.__module__ == info.name
        ]
    for point in entry_points(group="autointerp.exchange"):
        loaded = point.load()
        if not (inspect.isclass(loaded) and issubclass(loaded, ExchangeFormat) and not inspect.isabstract(loaded)):
            raise ConfigError(
                f"entry point {point.name!r} ({point.value}) of group 'autointerp.exchange' must load a concrete subclass of "
                "ExchangeFormat: fix or uninstall the package that declares it."
            )
        classes.append(loaded)
    found: dict[str, type[ExchangeFormat]] = {}
    for model in classes:
        kind = str(model.model_fields["kind"].default)
        if found.setdefault(kind, model) is not model:
            raise ConfigError(
                f"the format {kind!r} is claimed by {found[kind].__module__} and by {model.__module__}: uninstall one."
            )
    return found


def format_of(kind: str, settings: Sequence[str] = ()) -> ExchangeFormat:
    """The format of a kind with ``name=value`` settings. Errors: UnknownNameError, InputError."""
    known = known_formats()
    if kind not in known:
        raise UnknownNameError(f"there is no format {kind!r}: {did_you_mean(kind, [*known, 'parquet'])}")
    model = known[kind]
    fields = sorted(set(model.model_fields) - {"kind"})
    given: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in fields:
            has = f"it has {', '.join(fields)}" if fields else "it has none"
            raise InputError(f"--set {setting!r} names no setting of {kind}: {has}; give name=value.")
        given[name] = value
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise InputError(f"--set {name}={given.get(name, '')!r} will not do for {kind}: {message}.") from error
