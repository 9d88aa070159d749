"""NumPy arrays of token ids: a row of a 2-D array is a document; a 1-D one is a stream whose documents are not known."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from tokenize import TokenError
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from sae_core.document import Document
from sae_core.errors import CorpusError
from sae_core.readers.field import Field, FieldKind
from sae_core.readers.file import CorpusFile

SUFFIXES = (".npy",)
KINDS: tuple[FieldKind, ...] = ("tokens",)
_BLOCK_IDS = 1 << 18
_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


def read(file: CorpusFile, field: Field) -> Iterator[Document]:
    """The documents of the rows. Raises CorpusError for anything but a whole 1-D or 2-D array of integers."""
    with file.reading("NumPy"), file.open() as stream:
        shape, dtype = _header(stream, file)
        flat = len(shape) == 1
        length = min(_BLOCK_IDS, shape[0]) if flat else shape[1]
        left, row = prod(shape), 0
        while left:
            size = min(length, left) * dtype.itemsize
            block = stream.read(size)
            left -= size // dtype.itemsize
            row += 1
            yield Document(f"{file.name}:{row}", known=not flat, ids=np.frombuffer(block, dtype).astype(np.int64))


def _header(stream: BinaryIO, file: CorpusFile) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    try:
        version = npy_format.read_magic(stream)
        shape, by_column, dtype = _HEADERS[version](stream)
    except (ValueError, KeyError, TypeError, SyntaxError, TokenError, RecursionError) as error:
        raise CorpusError(
            f"{file.place} is not a whole NumPy file: fetch or write it again with numpy.save."
        ) from error
    if dtype.kind not in "iu" or len(shape) not in (1, 2) or by_column:
        held = f"{dtype} of shape {list(shape)}" + (" in column order" if by_column else "")
        raise CorpusError(
            f"{file.place} holds {held}, where token ids are integers [documents, tokens] or [tokens] in row order: write it so with numpy.save."
        )
    if min(shape) < 0 or prod(shape) * dtype.itemsize > file.size - stream.tell():
        raise EOFError("it ends early")
    return shape, dtype
