"""What the readers share: the options of a load, and configs read with one sentence where they do not fit."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml
from torch import Tensor

from sae_core.errors import CoderError
from sae_core.hook_names import layer_in
from sae_core.weights.opening import open_stored
from sae_core.weights.stored import StoredFile

_CONFIG_BYTES = 1 << 24
_INTEGERS = 1 << 40
"""No width or number of latents comes near it; beyond it, arithmetic would overflow."""
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring = 2, 80


def shown(value: object) -> str:
    """A short form of a config's value for a message, of any value."""
    try:
        return _SHORT.repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return f"a {type(value).__name__}"


class Architecture(NamedTuple):
    """One kind of coder of a format, for the table of the docs."""

    name: str
    checked: str
    """How it is checked: a folder of fixtures, or what else; empty where it is refused."""
    refused: str = ""
    """Why it is refused; empty where it is read."""
    reference: str = ""
    """What its numbers are checked against, where that is not the format's ``REFERENCE``."""


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
                f"input_scale is {shown(list(self.input_scale))}; give {num_hooks} positive factor{'s' * (num_hooks > 1)}, or 'folded'."
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
        config = json.loads(_text_of(path), object_pairs_hook=_without_duplicates)
    except CoderError:
        raise
    except (ValueError, RecursionError, OSError) as error:
        raise CoderError(
            f"{path} is not valid JSON ({error}): the coder's config must be the file its library wrote."
        ) from error
    if not isinstance(config, dict):
        raise CoderError(f"{path} holds a {type(config).__name__}, not a JSON object: it is not a coder's config.")
    return config


def _text_of(path: Path) -> str:
    if path.stat().st_size > _CONFIG_BYTES:  # before it is held in memory
        raise CoderError(f"{path} has {path.stat().st_size} bytes; a coder's config has a few thousand.")
    return path.read_text(encoding="utf-8")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def config_beside(path: Path) -> dict[str, Any] | None:
    """The object in ``<stem>_cfg.json`` beside a ``<stem>.pt``; None where there is no such pair."""
    if path.suffix != ".pt" or not path.is_file():
        return None
    config = path.with_name(f"{path.stem}_cfg.json")
    return read_config(config) if config.is_file() else None


def is_yaml_of_kind(path: Path, model_kind: str) -> bool:
    """Whether ``path`` is a circuit-tracer ``config.yaml`` of that ``model_kind``, valid or not."""
    if not path.is_file():
        return False
    try:
        text = _text_of(path)
    except (CoderError, UnicodeError, OSError):
        return False
    return re.search(rf"^model_kind:\s*['\"]?{model_kind}\b", text, re.M) is not None


def read_yaml(path: Path, model_kind: str) -> dict[str, Any]:
    """The mapping in a circuit-tracer ``config.yaml`` of that ``model_kind``."""
    try:
        config = yaml.safe_load(_text_of(path))
    except CoderError:
        raise
    except Exception as error:  # of odd scalars, the parser raises KeyError, AttributeError and others
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CoderError(f"{path} is not valid YAML of plain values ({first}): fetch it again.") from error
    if not isinstance(config, dict) or config.get("model_kind") != model_kind:
        raise CoderError(f"{path} is no mapping with model_kind: {model_kind}.")
    return config


def file_in(path: Path, name: str) -> Path:
    """The file ``name`` of a folder; ``path`` itself where it is that file."""
    return path if path.name == name else path / name


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
    if re.search(r"(^|\.)(attn|self_attn|attention)([.:]|$)", options.hookpoints[0]):
        raise CoderError(
            f"the hookpoint {options.hookpoints[0]!r} is an attention, and {folder} holds transcoders of MLPs: set it to 'layers.{layer}'."
        )
    return layer


def text(where: Path | str, key: str, value: object) -> str:
    """``value``, if it is text; empty for None."""
    if value is not None and not isinstance(value, str):
        raise CoderError(f"{where}: {key} is {shown(value)}; it must be text.")
    return value or ""


def flag(where: Path | str, key: str, value: object, default: bool = False) -> bool:
    """``value``, if it is true or false; ``default`` for None."""
    if value is not None and not isinstance(value, bool):
        raise CoderError(f"{where}: {key} is {shown(value)}; it must be true or false.")
    return default if value is None else value


def mapping(where: Path | str, key: str, value: object) -> dict[str, Any]:
    """``value``, if it is a mapping; empty for None."""
    if value is not None and not isinstance(value, dict):
        raise CoderError(f"{where}: {key} is {shown(value)}; it must be a mapping.")
    return value or {}


def positive_int(where: Path | str, key: str, value: object) -> int:
    """``value``, if it is a positive integer. Raises CoderError that names ``key`` otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _INTEGERS:
        raise CoderError(f"{where}: {key} is {shown(value)}; it must be a positive integer of a sensible size.")
    return value


def threshold_beside_norms(threshold: Tensor, rows: Tensor) -> Tensor:
    """``threshold`` [1] or [L] of pre-activations, where what is compared with it is the pre-activation times its decoder row's length.

    Llama Scope's ``sparsity_include_decoder_norm``: its publishers' code makes decoder rows [L, D] unit length before it
    applies the threshold. sae-lens takes them for such, which they are to about the precision of bfloat16; then the
    threshold is as stored.
    """
    norms = rows.norm(dim=1)
    if bool((norms.sub(1).abs() <= 0.01).all()):
        return threshold
    per_latent: Tensor = threshold / norms  # a row of length 0 writes nothing and never fires
    return per_latent


def positive_number(where: Path | str, key: str, value: object) -> float:
    """``value``, if it is a positive, finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e300:
        raise CoderError(f"{where}: {key} is {shown(value)}; it must be a positive number.")
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
        raise CoderError(f"{where}: {key} is {shown(value)}; known are {', '.join(repr(k) for k in known)}.")
    return str(value)


def as_threshold(where: Path | str, value: float, dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
    """[1] the one threshold of all latents. Raises CoderError where it is not finite, or not in ``dtype``."""
    threshold = torch.tensor([value], dtype=torch.float64).to(dtype)
    check_finite(where, "the threshold", threshold)
    return threshold.to(device)


def check_finite(where: Path | str, what: str, *tensors: torch.Tensor | None) -> None:
    """Raise CoderError where what was folded into weights has taken them beyond what their dtype holds."""
    for tensor in tensors:
        if tensor is not None and not (torch.isfinite(tensor.sum(dtype=torch.float64)) or torch.isfinite(tensor).all()):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CoderError(f"{where}: {what} goes beyond what {kind} holds: load the coder as float32 or bfloat16.")
