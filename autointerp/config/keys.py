"""The dotted keys of a configuration: which there are, their declared types and their documentation."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from autointerp.config.run import RunConfig


def annotation_at(parts: Sequence[str]) -> Any:
    """The declared type at a dotted key, None where it is not declared."""
    annotation: Any = RunConfig
    for part in parts:
        if typing.get_origin(annotation) is tuple and part.isdecimal():
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
            field = _field(annotation, part) if issubclass(annotation, BaseModel) else None
            if field is None:
                return None
            annotation = field.annotation
        else:
            return None
    return annotation


def _field(model: type[BaseModel], key: str) -> FieldInfo | None:
    """The field that a key of a table stands for."""
    return next((f for name, f in model.model_fields.items() if (f.alias or name) == key), None)


def known_keys() -> list[str]:
    """Every dotted key of a configuration; a position in a list is written ``0``."""
    keys: list[str] = []

    def walk(model: type[BaseModel], prefix: str) -> None:
        for attribute, field in model.model_fields.items():
            name = field.alias or attribute
            annotation: Any = field.annotation
            if typing.get_origin(annotation) is tuple and isinstance(typing.get_args(annotation)[0], type):
                inner = typing.get_args(annotation)[0]
                if issubclass(inner, BaseModel):
                    keys.append(prefix + name)
                    walk(inner, f"{prefix}{name}.0.")
                    continue
            keys.append(prefix + name)
            plain = isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias)
            if plain and issubclass(annotation, BaseModel):
                walk(annotation, f"{prefix}{name}.")

    walk(RunConfig, "")
    return keys


def described(parts: Sequence[str]) -> str:
    """The docstring of the field at a key."""
    model: Any = RunConfig
    text = ""
    for part in parts:
        if typing.get_origin(model) is tuple:
            model = typing.get_args(model)[0]
            if part.isdecimal():
                continue
        if not (isinstance(model, type) and not isinstance(model, types.GenericAlias) and issubclass(model, BaseModel)):
            break
        field = _field(model, part)
        if field is None:
            break
        text, model = field.description or "", field.annotation
    return text.replace("\n", " ").strip()
