"""Finds explainers, scorers and endpoints by scanning their packages and by entry points, and builds them from config tables.

Adding a component edits no existing file: a module in ``autointerp/explainers``, ``autointerp/scorers`` or
``autointerp/llm/endpoints`` with a concrete class is enough, or an entry point of the group ``autointerp.explainers``,
``autointerp.scorers`` or ``autointerp.endpoints`` that loads such a class.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal, overload

from pydantic import BaseModel, ValidationError

from autointerp.explainers.base import Explainer
from autointerp.llm.endpoints.base import Endpoint
from autointerp.scorers.base import Scorer
from sae_core.errors import ConfigError, did_you_mean

Group = Literal["explainers", "scorers", "endpoints"]
"""Name of a kind of components, and of its tables in the config file."""
Component = Explainer | Scorer | Endpoint

_BASES: dict[Group, type[Component]] = {"explainers": Explainer, "scorers": Scorer, "endpoints": Endpoint}
_PACKAGES: dict[Group, str] = {
    "explainers": "autointerp.explainers",
    "scorers": "autointerp.scorers",
    "endpoints": "autointerp.llm.endpoints",
}


def _kind_of(model: type[BaseModel]) -> str:
    """The one kind that a component class declares."""
    default = model.model_fields["kind"].default
    if not isinstance(default, str):
        raise ConfigError(
            f"component {model.__module__}.{model.__qualname__} declares no kind: give it "
            f'`kind: Literal["name"] = "name"`'
        )
    return default


@cache
def known_components(group: Group) -> Mapping[str, type[Component]]:
    """Component classes of a group by kind.

    Raises:
        ConfigError: two classes claim one kind, or an entry point does not load a component class.
    """
    base = _BASES[group]
    package = importlib.import_module(_PACKAGES[group])
    classes: list[type[Any]] = []
    for module_info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(module_info.name)
        classes += [
            member
            for _, member in inspect.getmembers(module, inspect.isclass)
            if issubclass(member, base) and not inspect.isabstract(member) and member.__module__ == module.__name__
        ]
    for point in entry_points(group=f"autointerp.{group}"):
        loaded = point.load()
        if not (inspect.isclass(loaded) and issubclass(loaded, base) and not inspect.isabstract(loaded)):
            raise ConfigError(
                f"entry point {point.name!r} ({point.value}) of group 'autointerp.{group}' must load a concrete "
                f"subclass of {base.__name__}: fix or uninstall the package that declares it"
            )
        classes.append(loaded)
    found: dict[str, type[Component]] = {}
    for model in classes:
        kind = _kind_of(model)
        if found.setdefault(kind, model) is not model:
            raise ConfigError(
                f"{group} kind {kind!r} is claimed by {found[kind].__module__} and by {model.__module__}: "
                f"rename one or uninstall its package"
            )
    return found


@overload
def parse_component(group: Literal["explainers"], table: Mapping[str, Any]) -> Explainer: ...
@overload
def parse_component(group: Literal["scorers"], table: Mapping[str, Any]) -> Scorer: ...
@overload
def parse_component(group: Literal["endpoints"], table: Mapping[str, Any]) -> Endpoint: ...
def parse_component(group: Group, table: Mapping[str, Any]) -> Component:
    """The component that a config table describes: ``{"kind": "pattern", ...its fields}``.

    Raises:
        ConfigError: no kind, an unknown kind or field (with the nearest names), or a value that does not fit.
    """
    known = known_components(group)
    kind = table.get("kind")
    if not isinstance(kind, str):
        given = "no kind" if kind is None else f"kind = {kind!r}"
        raise ConfigError(f"a table of [[{group}]] has {given}: give it a kind as text; {did_you_mean('', known)}")
    if kind not in known:
        raise ConfigError(f"[[{group}]] has the unknown kind {kind!r}: {did_you_mean(kind, known)}")
    model = known[kind]
    fields = {name: value for name, value in table.items() if name != "kind"}
    try:
        # as JSON: strict about types, while lists may stand for tuples
        return model.model_validate_json(json.dumps(fields, default=str))
    except ValidationError as error:
        raise ConfigError(_sentence(error, f"[[{group}]] kind {kind!r}", model)) from error


def _sentence(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    """The first complaint of a validation, as one sentence."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        fields = sorted(set(model.model_fields) - {"kind"})
        hint = did_you_mean(name, fields) if fields else "it has no fields"
        return f"{where} has the unknown field {name!r}{more}: {hint}"
    message = first["msg"][:1].lower() + first["msg"][1:]
    if name in model.model_fields and not model.model_fields[name].repr:
        return f"{where} has a {name} that will not do{more}: {message}"  # it may hold a key or a password
    return f"{where} has {name} = {first['input']!r}{more}: {message}"
