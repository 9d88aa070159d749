"""What every reader does before a weight is used: shapes, dtypes, finite values, and one sentence when they do not fit."""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_core.errors import CoderError


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from ``path``."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CoderError(
            f"{path} is not valid JSON ({error}): the coder's config must be the file its library wrote."
        ) from error
    if not isinstance(config, dict):
        raise CoderError(f"{path} holds a {type(config).__name__}, not a JSON object: it is not a coder's config.")
    return config


def read_tensors(path: Path, required: Set[str], optional: Set[str] = frozenset()) -> dict[str, Tensor]:
    """The tensors of a safetensors file: all ``required``, none but them and ``optional``, floating, finite."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            missing, unknown = required - names, names - required - optional
            if missing or unknown:
                found = ", ".join(sorted(names)) or "none"
                raise CoderError(
                    f"{path} holds the tensors {found}; expected {', '.join(sorted(required))}"
                    + (f" and at most {', '.join(sorted(optional))}" if optional else "")
                    + ": the file does not fit its config."
                )
            tensors = {name: file.get_tensor(name) for name in sorted(names)}
    except (SafetensorError, OSError) as error:
        raise CoderError(
            f"{path} cannot be read ({error}): the file is truncated or not safetensors; fetch it again."
        ) from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CoderError(f"{path}: tensor {name} has dtype {tensor.dtype}; weights must be floating point.")
        if not torch.isfinite(tensor).all():
            raise CoderError(
                f"{path}: tensor {name} holds NaN or infinite values: the file is damaged or the training diverged."
            )
    return tensors


def check_shape(path: Path, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raise CoderError unless ``tensor`` has the ``expected`` shape."""
    if tuple(tensor.shape) != expected:
        raise CoderError(f"{path}: tensor {name} has shape {list(tensor.shape)}, the config says {list(expected)}.")


def config_int(path: Path, config: dict[str, Any], key: str) -> int:
    """A positive integer of the config."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CoderError(f"{path}: {key} is {value!r}; it must be a positive integer.")
    return value
