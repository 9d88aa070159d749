"""What the readers share: the options of a load, and configs read with one sentence where they do not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml

from sae_core.errors import CoderError
from sae_core.formats.stored import StoredFile, open_stored


class Architecture(NamedTuple):
    """One kind of coder of a format, for the table of the docs."""

    name: str
    checked: str
    """How it is checked: a folder of fixtures, or what else; empty where it is refused."""
    refused: str = ""
    """Why it is refused; empty where it is read."""


@dataclass
class Options:
    """What the caller of a load said beyond the path. A reader takes what it understands; the rest is an error."""

    hookpoints: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    device: str | torch.device = "cpu"
    allow_pickle: bool = False
    input_scale: tuple[float, ...] | Literal["folded"] | None = None
    k: int | None = None
    center_writing_weights: bool | None = None
    taken: set[str] = field(default_factory=set)
    """Names of the options that the reader understood."""

    def take_input_scale(self, num_hooks: int = 1) -> tuple[float, ...] | None:
        """The factor of each input hookpoint that inputs are scaled by; None where it is not said.

        Raises CoderError for another number of factors, or one that is not positive.
        """
        self.taken.add("input_scale")
        if self.input_scale is None:
            return None
        if self.input_scale == "folded":
            return (1.0,) * num_hooks
        if len(self.input_scale) != num_hooks or not all(0 < s < float("inf") for s in self.input_scale):
            raise CoderError(
                f"input_scale is {list(self.input_scale)}; give {num_hooks} positive factor{'s' * (num_hooks > 1)}, or 'folded'."
            )
        return self.input_scale

    def take_k(self) -> int | None:
        """The number of active latents that the caller gave."""
        self.taken.add("k")
        return self.k

    def take_center_writing_weights(self) -> bool | None:
        """What the caller said of the subject that the coder was trained on."""
        self.taken.add("center_writing_weights")
        return self.center_writing_weights

    def open(self, path: Path) -> StoredFile:
        """Look into a file of weights."""
        return open_stored(path, allow_pickle=self.allow_pickle)

    def check_all_taken(self, format_name: str) -> None:
        """Raise CoderError for an option that the reader had no use for: silently ignoring it would mis-scale."""
        given = {
            "input_scale": self.input_scale,
            "k": self.k,
            "center_writing_weights": self.center_writing_weights,
        }
        for name, value in given.items():
            if value is not None and name not in self.taken:
                raise CoderError(f"{name} is given, and this {format_name} coder has no use for it: leave it out.")


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from ``path``."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise CoderError(
            f"{path} is not valid JSON ({error}): the coder's config must be the file its library wrote."
        ) from error
    if not isinstance(config, dict):
        raise CoderError(f"{path} holds a {type(config).__name__}, not a JSON object: it is not a coder's config.")
    return config


def config_beside(path: Path) -> dict[str, Any] | None:
    """The object in ``<stem>_cfg.json`` beside a ``<stem>.pt``; None where there is no such pair."""
    config = path.with_name(f"{path.stem}_cfg.json")
    return read_config(config) if path.suffix == ".pt" and path.is_file() and config.is_file() else None


def yaml_of_kind(path: Path, model_kind: str) -> dict[str, Any] | None:
    """The mapping in a circuit-tracer ``config.yaml`` of that ``model_kind``; None where it is none."""
    if not path.is_file():
        return None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    return config if isinstance(config, dict) and config.get("model_kind") == model_kind else None


def file_in(path: Path, name: str) -> Path:
    """The file ``name`` of a folder; ``path`` itself where it is that file."""
    return path if path.name == name else path / name


def layer_in(hookpoint: str) -> int | None:
    """The number of the layer that a hookpoint's name has."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|:|$)", hookpoint) or re.search(r"_(\d+)$", hookpoint)
    return int(found[1]) if found else None


def layer_of(folder: Path, options: Options, layers: Collection[int]) -> int:
    """Which of a set's ``layers`` the hookpoint chooses. Raises CoderError where it chooses none."""
    options.taken.add("hookpoints")
    layer = layer_in(options.hookpoints[0]) if options.hookpoints else None
    if layer is None or layer not in layers:
        said = f"the hookpoint {options.hookpoints[0]!r} is none of them" if options.hookpoints else "none is chosen"
        known = sorted(layers)
        span = f"{known[0]} to {known[-1]}" if len(known) > 1 else f"{known[0] if known else 'none'}"
        raise CoderError(
            f"{folder} holds one coder a layer (layers {span}), and {said}: set the hookpoint to one layer, such as "
            f"'layers.{known[0] if known else 0}', and give each layer as a coder of its own."
        )
    return layer


def positive_int(where: Path | str, key: str, value: object) -> int:
    """``value``, if it is a positive integer. Raises CoderError that names ``key`` otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CoderError(f"{where}: {key} is {value!r}; it must be a positive integer.")
    return value


def positive_number(where: Path | str, key: str, value: object) -> float:
    """``value``, if it is a positive, finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise CoderError(f"{where}: {key} is {value!r}; it must be a positive number.")
    return float(value)


def active_latents(where: Path | str, value: object, num_latents: int) -> int:
    """``k``, if it is an integer from 1 to the number of latents."""
    k = positive_int(where, "k", value)
    if k > num_latents:
        raise CoderError(f"{where}: k is {k}, more than the {num_latents} latents.")
    return k


def one_of(where: Path | str, key: str, value: object, known: Sequence[str]) -> str:
    """``value``, if it is one of ``known``. Raises CoderError that lists them otherwise."""
    if value not in known:
        raise CoderError(f"{where}: {key} is {value!r}; known are {', '.join(repr(k) for k in known)}.")
    return str(value)
