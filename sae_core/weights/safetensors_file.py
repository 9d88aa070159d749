"""What lies in a safetensors file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_core.errors import CoderError
from sae_core.weights.pieces import stream_pieces
from sae_core.weights.stored import StoredFile, StoredTensor

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool,
}  # fmt: skip


def open_safetensors(path: Path) -> StoredFile:
    """Names, shapes and places of its tensors. Raises CoderError for a file that is truncated or no safetensors."""
    # safe_open checks the header (its size, overlaps, that the tensors fill the file); the bytes are then read as a
    # plain file, because pages of a memory map would count as the process's memory.
    try:
        with safe_open(path, framework="np") as file, path.open("rb") as raw:
            begin = 8 + int.from_bytes(raw.read(8), "little")
            tensors = {}
            for name in file.offset_keys():
                view = file.get_slice(name)
                shape, dtype = tuple(view.get_shape()), _DTYPES.get(view.get_dtype())
                if dtype is None:
                    raise CoderError(
                        f"{path}: tensor {name} has dtype {view.get_dtype()}; weights are stored as float32, bfloat16, float16 or float64."
                    )
                size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
                tensors[name] = StoredTensor(shape, dtype, _file_pieces(path, begin, size, dtype))
                begin += size
    except (SafetensorError, OSError, UnicodeError) as error:
        raise CoderError(
            f"{path} cannot be read ({error}): the file is truncated or not safetensors; fetch it again."
        ) from error
    return StoredFile(path, tensors, {})


def _file_pieces(path: Path, begin: int, size: int, dtype: torch.dtype) -> Callable[[int], Iterator[Tensor]]:
    def pieces(width: int) -> Iterator[Tensor]:
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            yield from stream_pieces(file, size, dtype, width)

    return pieces
