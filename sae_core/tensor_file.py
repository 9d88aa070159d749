"""safetensors files as arrays that stay on the disk: mapped for reading, or made in full size and then filled. Torch-free."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "I64": "<i8",
    "U64": "<u8",
    "I32": "<i4",
    "U32": "<u4",
    "I16": "<i2",
    "U16": "<u2",
    "I8": "<i1",
    "U8": "<u1",
    "BOOL": "|b1",
}
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}


def mapped(path: Path, mode: str = "r") -> dict[str, Any]:
    """The tensors of a file by name, as arrays that are read when they are used."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    arrays: dict[str, Any] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        if 0 in shape:
            arrays[name] = np.empty(shape, dtype)  # nothing cannot be mapped
            continue
        offset = 8 + length + entry["data_offsets"][0]
        data: Any = np.memmap(path, dtype=dtype, mode=mode, offset=offset, shape=shape)  # type: ignore[call-overload]
        arrays[name] = data.view(np.ndarray)  # the subclass makes each slice slow
    return arrays


def create(path: Path, layout: Mapping[str, tuple[DTypeLike, tuple[int, ...]]]) -> dict[str, NDArray[Any]]:
    """A new file of zeros with tensors of these types and shapes, mapped for writing.

    The larger types come first, as safetensors writes them, so that every array is aligned.
    """
    header: dict[str, Any] = {}
    place = 0
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -np.dtype(item[1][0]).itemsize):
        size = np.dtype(dtype).itemsize * math.prod(shape)
        header[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [place, place + size],
        }
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)
    return mapped(path, "r+")
