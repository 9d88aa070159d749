"""Reads circuit-tracer's feature files, packed or one file a feature, whoever wrote them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from autointerp.exchange.circuit_tracer import INDEX_NAME, LENGTH
from autointerp.exchange.layers import cantor_pair
from sae_core.errors import InputError, MissingFileError

LARGEST_RECORD_BYTES = 64 * 2**20
"""Of one feature, unpacked; what is larger is no feature."""
LARGEST_INDEX_BYTES = 2**30
_EITHER = 32 + zlib.MAX_WBITS
"""zlib or gzip, whichever the bytes begin like."""


@dataclass(frozen=True)
class _Layer:
    path: Path
    offsets: Sequence[int]


class FeatureFiles:
    """A folder with ``index.json.gz`` and its files, or with ``<number>.json``."""

    def __init__(self, folder: Path | str) -> None:
        """Errors: MissingFileError for what is no folder."""
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise MissingFileError(f"there is no folder {str(folder)!r}: give the folder of feature files.")

    @cached_property
    def _layers(self) -> Mapping[int, _Layer] | None:
        """None where features are files of their own. Errors: InputError."""
        path = self.folder / INDEX_NAME
        if not path.is_file():
            return None
        found = _json_of(_unpacked(path.read_bytes(), LARGEST_INDEX_BYTES, str(path)), str(path))
        entries = enumerate(found) if isinstance(found, list) else found.items() if isinstance(found, dict) else ()
        layers = {}
        for key, entry in entries:
            if entry is None:
                continue  # a list has a place for layers that were left out
            place = f"the index {str(path)!r}, layer {str(key)[:20]!r},"
            if not str(key).isdecimal() or not isinstance(entry, dict):
                raise InputError(f"{place} is no layer with filename and offsets: give circuit-tracer's feature files.")
            name, offsets = entry.get("filename"), entry.get("offsets")
            if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
                raise InputError(
                    f"{place} names {name!r:.60}, which is no file beside it: give circuit-tracer's files."
                )
            if not isinstance(offsets, list) or not all(type(n) is int and n >= 0 for n in offsets):
                raise InputError(f"{place} has offsets that are not whole numbers: give circuit-tracer's files.")
            layers[int(key)] = _Layer(self.folder / name, offsets)
        return layers

    @property
    def layers(self) -> list[int]:
        """Layers of a packed folder; none are known of the other kind."""
        return sorted(self._layers or {})

    def num_latents(self, layer: int) -> int:
        """Records of a layer of a packed folder, empty ones among them."""
        found = (self._layers or {}).get(layer)
        return 0 if found is None else max(len(found.offsets) - 1, 0)

    def feature(self, layer: int, latent: int) -> dict[str, Any] | None:
        """One feature; None where there is none. Errors: InputError for what cannot be read."""
        if self._layers is None:
            path = self.folder / f"{cantor_pair(layer, latent)}.json"
            if not path.is_file():
                return None
            if path.stat().st_size > LARGEST_RECORD_BYTES:
                raise InputError(f"{str(path)!r} is larger than {LARGEST_RECORD_BYTES >> 20} MiB: it is no feature.")
            return _feature_of(path.read_bytes(), str(path))
        found = self._layers.get(layer)
        if found is None or not 0 <= latent < len(found.offsets) - 1:
            return None
        begin, end = found.offsets[latent : latent + 2]
        if end - begin <= LENGTH.size:
            return None
        what = f"latent {latent} of layer {layer} in {str(found.path)!r}"
        try:
            with found.path.open("rb") as file:
                file.seek(begin)
                data = file.read(min(end - begin, LARGEST_RECORD_BYTES))
        except OSError as error:
            raise InputError(
                f"{what} cannot be read ({error.strerror}): give all files that the index names."
            ) from error
        length = LENGTH.unpack(data[: LENGTH.size])[0] if len(data) > LENGTH.size else -1
        if not 0 <= length <= len(data) - LENGTH.size:
            raise InputError(f"{what} is cut, or the index is that of another file: give whole files.")
        packed = data[LENGTH.size : LENGTH.size + length]
        return _feature_of(_unpacked(packed, LARGEST_RECORD_BYTES, what), what)


def _unpacked(data: bytes, most: int, what: str) -> bytes:
    """Errors: InputError for what is no zlib or gzip, or unpacks to more than ``most`` bytes."""
    machine = zlib.decompressobj(_EITHER)
    try:
        found = machine.decompress(data, most)
    except zlib.error as error:
        raise InputError(f"{what} cannot be unpacked ({error}): give whole files.") from error
    if not machine.eof:
        raise InputError(f"{what} is cut, or larger than {most >> 20} MiB: give whole files of circuit-tracer's.")
    return found


def _json_of(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is no JSON ({error}): give circuit-tracer's files.") from error


def _feature_of(data: bytes, what: str) -> dict[str, Any]:
    found = _json_of(data, what)
    if not isinstance(found, dict) or not isinstance(found.get("examples_quantiles"), list) or "index" not in found:
        raise InputError(f"{what} has no index or no examples_quantiles: give circuit-tracer's feature files.")
    for group in found["examples_quantiles"]:
        examples = group.get("examples") if isinstance(group, dict) else None
        if not isinstance(examples, list) or not all(_is_example(example) for example in examples):
            raise InputError(
                f"{what} has windows without as many tokens_acts_list as tokens: give circuit-tracer's files."
            )
    return found


def _is_example(example: Any) -> bool:
    if not isinstance(example, dict):
        return False
    tokens, values = example.get("tokens"), example.get("tokens_acts_list")
    return isinstance(tokens, list) and isinstance(values, list) and len(tokens) == len(values)
