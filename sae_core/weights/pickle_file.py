"""What lies in a torch pickle: its tensors and plain values, never code."""

from __future__ import annotations

import pickle
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from sae_core.errors import CoderError
from sae_core.weights.pieces import PIECE_BYTES
from sae_core.weights.stored import StoredFile, StoredTensor

_forbidders = 0
_lock = threading.Lock()


@contextmanager
def pickles_forbidden() -> Iterator[None]:
    """While this is open no pickle is read in this process, in any thread, whatever ``allow_pickle`` says.

    For code that works on strangers' requests.
    """
    global _forbidders
    with _lock:
        _forbidders += 1
    try:
        yield
    finally:
        with _lock:
            _forbidders -= 1


def open_pickle(path: Path, *, allow_pickle: bool) -> StoredFile:
    """Names and shapes of its tensors, and its plain values, read with ``weights_only=True``.

    Raises CoderError without ``allow_pickle``, for a file that is damaged, and for one that holds more than that.
    """
    if _forbidders:
        raise CoderError(
            f"{path.name} is a torch pickle, and a service never opens one, whatever a request asks for: convert it to safetensors."
        )
    if not allow_pickle:
        raise CoderError(
            f"{path.name} is a torch pickle, which could run code when it is read: set allow_pickle to read its tensors "
            "(and nothing else of it), or convert it to safetensors."
        )
    try:
        # the newer, zipped kind is mapped, so that only what is used is read
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CoderError(
            f"{path} holds more than tensors and plain values, so that reading it could run code, or is damaged; it is "
            "refused: convert it to safetensors where it comes from."
        ) from error
    except Exception as error:  # of damaged bytes, the unpickler raises almost any
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CoderError(f"{path} cannot be read ({first}): the file is truncated or no torch pickle.") from error
    if not isinstance(content, Mapping):
        raise CoderError(f"{path} holds a {type(content).__name__}; a coder's pickle is a dict of tensors.")
    tensors, values = {}, {}
    for name, value in content.items():
        if not isinstance(name, str):
            raise CoderError(
                f"{path} names something by a {type(name).__name__}; a coder's pickle is a dict of tensors."
            )
        if isinstance(value, Tensor):
            dtype = value.dtype if _is_plain(value) else None
            tensors[name] = StoredTensor(tuple(value.shape), dtype, _tensor_pieces(value))
        else:
            values[name] = value
    return StoredFile(path, tensors, values)


def _is_plain(tensor: Tensor) -> bool:
    """Whether its entries lie in memory one by one: a pickle may say that one stored number is a whole matrix."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_neg():
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _tensor_pieces(tensor: Tensor) -> Callable[[int], Iterator[Tensor]]:
    def pieces(width: int) -> Iterator[Tensor]:
        value = tensor.detach()
        if value.ndim < 2:
            yield value.reshape(-1)
            return
        if value.ndim == 3:  # [H, L, D]: hook by hook, each a matrix
            for matrix in value:
                yield from _tensor_pieces(matrix)(width)
            return
        row_bytes = max(1, value[0].numel() * value.element_size())
        step = max(1, PIECE_BYTES // row_bytes)
        for start in range(0, len(value), step):
            yield value[start : start + step].reshape(-1)

    return pieces
