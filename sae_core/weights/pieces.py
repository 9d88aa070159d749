"""Files read piece by piece, into two buffers that take turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import torch
from torch import Tensor

PIECE_BYTES = 1 << 23


def stream_pieces(file: IO[bytes], size: int, dtype: torch.dtype, width: int) -> Iterator[Tensor]:
    """The next ``size`` bytes of ``file`` as flat tensors of ``dtype``, in pieces of whole rows of ``width`` entries.

    Ends early where the file does.
    """
    row_bytes = width * dtype.itemsize
    length = min(max(PIECE_BYTES // row_bytes, 1) * row_bytes, max(size, 1))
    buffers = bytearray(length), bytearray(length)  # one is read into while the other is used
    left = size
    while left:
        buffer = buffers[0]
        buffers = buffers[::-1]
        view = memoryview(buffer)[: min(left, length)]
        filled = 0
        while filled < len(view):
            got = file.readinto(view[filled:])  # type: ignore[attr-defined]
            if not got:
                return
            filled += got
        left -= filled
        yield torch.frombuffer(buffer, dtype=dtype, count=filled // dtype.itemsize)
