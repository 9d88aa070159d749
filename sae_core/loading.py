"""``load_coder``: from a folder, a file or a hub id to a :class:`sae_core.coder.SparseCoder`."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Literal, Protocol, cast

import torch

import sae_core.formats
from sae_core.coder import Fact, SparseCoder
from sae_core.errors import CoderError
from sae_core.formats.reading import Architecture, Options, shown
from sae_core.hook_names import layer_in
from sae_core.hub import coder_path
from sae_core.weights.stored import WEIGHT_DTYPES


class Reader(Protocol):
    """A module of ``sae_core.formats`` that reads one format."""

    NAME: str
    TITLE: str
    """What people call it."""
    REFERENCE: str
    """What its numbers are checked against."""
    FILES: str
    """What a coder of this format is on disk, in a few words."""
    ARCHITECTURES: tuple[Architecture, ...]

    def matches(self, path: Path) -> bool:
        """Whether ``path``, a folder or a file, holds this format."""
        ...

    def read(self, path: Path, options: Options) -> SparseCoder:
        """The coder. Raises CoderError for what it does not understand."""
        ...


@cache
def readers() -> tuple[Reader, ...]:
    """Every reader, by name: the modules of ``sae_core.formats`` that have ``read``."""
    found = (
        importlib.import_module(f"sae_core.formats.{m.name}") for m in pkgutil.iter_modules(sae_core.formats.__path__)
    )
    return tuple(cast(Reader, module) for module in found if hasattr(module, "read"))


def load_coder(
    path_or_hub_id: str | Path,
    *,
    hookpoint: str | Sequence[str] | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    allow_pickle: bool = False,
    input_scale: float | Sequence[float] | Literal["folded"] | None = None,
    k: int | None = None,
    center_writing_weights: bool | None = None,
) -> SparseCoder:
    """The sparse coder in a folder, a file, or a hub repository (``org/name``, ``org/name/folder/in/it``).

    Args:
        path_or_hub_id: where it lies; a hub repository is asked of the local cache when offline.
        hookpoint: overrides what the coder itself says (one name for each input hookpoint); where a folder holds one
            coder a hookpoint it chooses among them.
        revision: hub commit, branch or tag.
        device: where the weights go.
        dtype: what they are cast to as they are read.
        allow_pickle: read torch pickles too, their tensors only (``weights_only=True``).
        input_scale: what inputs are multiplied by, for formats that leave it out of the file (one factor a hookpoint);
            ``"folded"`` states that the weights contain it.
        k: active latents of a token, for formats that leave it out.
        center_writing_weights: whether TransformerLens centred the weights of the subject that the coder was trained
            on, where the file does not say.

    Raises:
        MissingFileError: there is no such folder, file or repository.
        CoderError: it is no coder of a known format, is damaged, or cannot be read without guessing.
    """
    if hookpoint is not None and not isinstance(hookpoint, (str, Sequence)):
        raise CoderError(f"hookpoint is {shown(hookpoint)}; give a module's name, or a list of names.")
    hookpoints = (hookpoint,) if isinstance(hookpoint, str) else tuple(hookpoint or ())
    # it may name a folder among others: it must not lead out of them, or be longer than a name can be
    if not all(isinstance(name, str) and re.fullmatch(r"[^/\0]{1,200}", name.strip()) for name in hookpoints):
        raise CoderError(f"hookpoint is {shown(hookpoint)}; give a module's name, or a list of names.")
    if dtype not in WEIGHT_DTYPES:
        known = ", ".join(str(d).removeprefix("torch.") for d in WEIGHT_DTYPES)
        raise CoderError(f"dtype is {dtype}; weights are loaded as one of {known}.")
    options = Options(hookpoints, dtype, device, allow_pickle, _factors(input_scale), k, center_writing_weights)
    path, commit = coder_path(str(path_or_hub_id), revision=revision, hookpoint=hookpoints[0] if hookpoints else None)
    if revision is not None and commit is None:
        raise CoderError(
            f"revision is {revision!r} and {str(path_or_hub_id)!r} is a path here, not a hub id: leave it out."
        )
    path, chosen = _chosen(path, hookpoints)
    reader = reader_of(path)
    if reader is None:
        raise CoderError(_unknown_format(path, hookpoints))
    coder = reader.read(path, options)
    options.check_all_taken(reader.NAME)
    if commit is not None:
        coder = replace(coder, facts=(*coder.facts, Fact("revision", commit, "the hub")))
    if not hookpoints or "hookpoints" in options.taken:
        return coder
    if chosen and coder.hookpoints_in:
        if layer_in(coder.hookpoints_in[0]) != layer_in(hookpoints[0]):
            raise CoderError(
                f"the hookpoint is {hookpoints[0]!r}, and {path} reads {coder.hookpoints_in[0]}: give one coder."
            )
        return coder
    return _attached_elsewhere(coder, hookpoints)


def _factors(given: object) -> tuple[float, ...] | Literal["folded"] | None:
    """``input_scale`` as one factor a hookpoint. Raises CoderError for what is neither a factor nor several."""
    if given is None or (isinstance(given, str) and given == "folded"):
        return cast(Literal["folded"] | None, given)
    factors = [given] if isinstance(given, Real) else given
    if isinstance(factors, Sequence) and all(isinstance(f, Real) and not isinstance(f, bool) for f in factors):
        with suppress(OverflowError):
            return tuple(float(f) for f in factors)
    raise CoderError(f"input_scale is {shown(given)}; give a positive factor, a list of them, or 'folded'.")


def reader_of(path: Path) -> Reader | None:
    """The reader that knows what lies at ``path``, if there is one."""
    return next((reader for reader in readers() if reader.matches(path)), None)


def _chosen(path: Path, hookpoints: tuple[str, ...]) -> tuple[Path, bool]:
    """The coder in a folder that is none itself: that of the hookpoint, or its only one; and whether it was the layer that
    chose it among several."""
    if reader_of(path) is not None or not path.is_dir():
        return path, False
    if hookpoints and (path / hookpoints[0]).is_dir():
        return path / hookpoints[0], False
    inside = {
        p: layer_in(p.stem.removesuffix(".sae").replace("layer", ""))
        for p in _entries(path)
        if reader_of(p) is not None and p.is_file()
    }
    layer = layer_in(hookpoints[0]) if hookpoints else None
    if len(inside) == 1 and (layer is None or None in inside.values()):
        return next(iter(inside)), False
    of_layer = [p for p, number in inside.items() if number is not None and number == layer]
    return (of_layer[0], True) if len(of_layer) == 1 else (path, False)


def _attached_elsewhere(coder: SparseCoder, hookpoints: tuple[str, ...]) -> SparseCoder:
    """The coder on the hookpoints that the caller gave."""
    if len(hookpoints) != coder.num_hooks_in:
        given = f"{len(hookpoints)} hookpoint{'s are' if len(hookpoints) > 1 else ' is'} given"
        raise CoderError(f"{given}, and the coder reads {coder.num_hooks_in}: give as many, in its order.")
    if coder.hookpoints_in and {_bare(n) for n in coder.hookpoints_in} != {_bare(n) for n in coder.hookpoints_out}:
        raise CoderError(
            f"the coder reads {', '.join(coder.hookpoints_in)} and writes {', '.join(coder.hookpoints_out)}, as its files say: "
            "leave the hookpoint out."
        )
    if not coder.hookpoints_in and ("transcoder" in coder.architecture or coder.format.startswith("circuit_tracer")):
        raise CoderError(
            "the coder writes elsewhere than it reads, and its files do not say where: one hookpoint cannot say both; "
            "add what its format says them by, the folder's names or the config."
        )
    bare = tuple(_bare(name) for name in hookpoints)
    ends = [":input" if name.endswith(":input") else "" for name in coder.hookpoints_in] or [""] * len(bare)
    into = tuple(name + end for name, end in zip(bare, ends, strict=True))
    out = bare if coder.num_hooks_out == coder.num_hooks_in else coder.hookpoints_out
    facts = [fact for fact in coder.facts if fact.name != "hookpoint"]
    return replace(
        coder,
        hookpoints_in=into,
        hookpoints_out=out,
        facts=(Fact("hookpoint", ", ".join(into), "given"), *facts),
    )


def _bare(hookpoint: str) -> str:
    return hookpoint.removesuffix(":input")


def _unknown_format(path: Path, hookpoints: tuple[str, ...]) -> str:
    known = "; ".join(f"{reader.NAME}: {reader.FILES}" for reader in readers())
    if not path.is_dir():
        if (whole := reader_of(path.parent)) is not None:
            return f"{path} is one file of a {whole.NAME} coder: give its folder, {path.parent}."
        return f"{path} is a file of no format that is known. A coder is one of {known}."
    coders = {p for p in _below(path) if reader_of(p) is not None}
    nested = sorted(str(p.relative_to(path)) for p in coders if not coders & set(p.parents))
    if nested:
        more = f" and {len(nested) - 8} more" if len(nested) > 8 else ""
        number = f"{len(nested)} coder{'s' * (len(nested) > 1)}"
        return f"{path} holds {number} ({', '.join(nested[:8])}{more}): give one of these{'' if hookpoints else ', or set the hookpoint'}."
    inside = sorted(p.name for p in _entries(path))
    return f"{path} holds {', '.join(inside[:8]) or 'nothing'}. A coder is one of {known}."


def _below(path: Path, depth: int = 4, most: int = 5000) -> list[Path]:
    """Files and folders below ``path``, down to ``depth`` levels: not all where there are very many."""
    found: list[Path] = []
    level = [path]
    for _ in range(depth):
        level = [deeper for folder in level[:most] if folder.is_dir() for deeper in _entries(folder)]
        found += level[: most - len(found)]
        if len(found) == most:
            break
    return found


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
