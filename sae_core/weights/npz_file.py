"""What lies in a numpy archive, compressed or not."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae_core.errors import CoderError
from sae_core.weights.pieces import stream_pieces
from sae_core.weights.stored import StoredFile, StoredTensor

_DEFLATE_LIMIT = 1032
"""How many bytes one byte of a compressed archive can stand for at most."""


def open_npz(path: Path) -> StoredFile:
    """Names, shapes and places of its arrays. Raises CoderError for a damaged archive, and for one that holds objects."""
    tensors = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name in tensors:
                    raise CoderError(f"{path} holds {name} twice: save it again.")
                stored = member.compress_type == zipfile.ZIP_STORED
                if member.file_size > path.stat().st_size * (1 if stored else _DEFLATE_LIMIT):
                    raise CoderError(f"{path} cannot hold {name} at the size it says; fetch the file again.")
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, by_columns, np_dtype = read(file)
                    header = file.tell()
                if np_dtype.hasobject:
                    raise CoderError(
                        f"{path}: {name} holds Python objects, which could run code when they are read: a coder's file "
                        "holds plain arrays; save it again without objects."
                    )
                known = np_dtype.kind in "fib" and np_dtype.isnative and np_dtype.itemsize <= 8
                dtype = torch.from_numpy(np.empty(0, np_dtype)).dtype if known else None
                size = math.prod(shape) * np_dtype.itemsize
                if size != member.file_size - header or any(axis < 0 for axis in shape):
                    raise CoderError(f"{path}: {name} is shorter or longer than its header says; fetch the file again.")
                if by_columns and len(shape) > 1:
                    raise CoderError(f"{path}: {name} is stored by columns; save it again in C order.")
                tensors[name] = StoredTensor(shape, dtype, _npz_pieces(path, member.filename, header, size, dtype))
    except CoderError:
        raise
    except Exception as error:  # of a damaged archive, zipfile, zlib and numpy's parser raise almost any
        raise CoderError(
            f"{path} cannot be read ({error}): the file is truncated or not npz; fetch it again."
        ) from error
    return StoredFile(path, tensors, {})


def _npz_pieces(
    path: Path, member: str, header: int, size: int, dtype: torch.dtype | None
) -> Callable[[int], Iterator[Tensor]]:
    def pieces(width: int) -> Iterator[Tensor]:
        assert dtype is not None
        try:
            with zipfile.ZipFile(path) as archive, archive.open(member) as file:
                file.read(header)
                yield from stream_pieces(file, size, dtype, width)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise CoderError(f"{path} is damaged ({error}): fetch it again.") from error

    return pieces
