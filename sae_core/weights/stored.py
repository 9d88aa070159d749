"""Weights on disk, read once and straight into memory of the wanted dtype.

What a file holds (names, shapes, dtypes) is known before a weight is read. Reading then goes through the file in
pieces: each is hashed, checked for NaN and infinity and cast into its place, so that nothing but the weights
themselves is ever held.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae_core.errors import CoderError

_LOADING = threading.Lock()
_loads_running = 0
_threads_before = 1
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What weights may be stored in, and be loaded as."""


class StoredTensor(NamedTuple):
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None where it is no dtype that weights are stored in."""
    pieces: Callable[[int], Iterator[Tensor]]
    """Its entries in order, as flat tensors on the CPU that are valid until the next but one is asked for; the argument
    is a number of entries that no piece may cut."""


@dataclass(frozen=True)
class Weights:
    """Tensors that were read."""

    tensors: dict[str, Tensor]
    digest: str
    """sha256 over names, dtypes, shapes and bytes as stored."""

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        """The tensor, if the file has it."""
        return self.tensors.get(name)


@dataclass(frozen=True)
class StoredFile:
    """What lies in one file of weights, of which nothing is read yet."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    values: Mapping[str, Any]
    """What a pickle holds beside tensors: numbers, strings and containers of them."""

    def shape(self, name: str, axes: int | None = None) -> tuple[int, ...]:
        """Shape of a tensor. Raises CoderError if the file does not have it, or it has another number of axes."""
        if name not in self.tensors:
            found = ", ".join(sorted(self.tensors)) or "none"
            raise CoderError(
                f"{self.path} holds the tensors {found}; {name} is missing: the file is not what it should be."
            )
        shape = self.tensors[name].shape
        if axes is not None and len(shape) != axes:
            raise CoderError(f"{self.path}: tensor {name} has shape {list(shape)}; it must have {axes} axes.")
        return shape

    def number(self, name: str) -> float:
        """A tensor of one entry, or a plain number, read now. Raises CoderError where it is neither."""
        value = self.values.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                raise CoderError(f"{self.path}: {name} is too large for a number.") from None
        shape = self.shape(name)
        if math.prod(shape) != 1:
            raise CoderError(f"{self.path}: {name} has shape {list(shape)}; it must be one number.")
        return float(self.small(name, shape).reshape(()))

    def integer(self, name: str) -> int:
        """The same where it must be a whole number."""
        value = self.number(name)
        if not value.is_integer():  # NaN and infinity are none either
            raise CoderError(f"{self.path}: {name} is {value:g}; it must be a whole number.")
        return int(value)

    def small(self, name: str, *shapes: tuple[int, ...]) -> Tensor:
        """A tensor of one of ``shapes``, as float64 and as it is stored, NaN or not."""
        shape, dtype = self.shape(name), self.tensors[name].dtype
        if shape not in shapes or not math.prod(shape):
            raise CoderError(
                f"{self.path}: {name} has shape {list(shape)}; expected {' or '.join(str(list(s)) for s in shapes)}."
            )
        if dtype is None or dtype.is_complex:
            raise CoderError(f"{self.path}: {name} has dtype {dtype or 'unknown'}; it must be a number.")
        return torch.cat([piece.double() for piece in self.tensors[name].pieces(1)]).reshape(shape)

    def read(
        self,
        required: Mapping[str, tuple[int, ...]],
        optional: Mapping[str, tuple[int, ...]] | None = None,
        *,
        ignored: Collection[str] = (),
        hooks_first: Collection[str] = (),
        dtype: torch.dtype,
        device: str | torch.device,
    ) -> Weights:
        """The tensors of these names and shapes as ``dtype`` on ``device``; no other names may be in the file.

        ``ignored`` tensors may be there and are neither read nor part of the digest. Tensors of ``hooks_first`` are
        stored [H, L, D] and come as [L, H, D].
        Raises CoderError for a name that is missing or unknown, another shape, nothing in it, a dtype that is not
        floating, NaN or infinite entries, and entries that overflow ``dtype``; all but the last two before a weight is
        read.
        """
        wanted = {**required, **{n: s for n, s in (optional or {}).items() if n in self.tensors}}
        names = set(self.tensors) - set(ignored)
        if set(required) - names or names - set(wanted):
            most = f" and at most {', '.join(sorted(optional))}" if optional else ""
            raise CoderError(
                f"{self.path} holds the tensors {', '.join(sorted(self.tensors)) or 'none'}; expected "
                f"{', '.join(sorted(required))}{most}: the file does not fit its config."
            )
        for name, shape in wanted.items():
            stored = self.tensors[name]
            if stored.shape != shape:
                raise CoderError(
                    f"{self.path}: tensor {name} has shape {list(stored.shape)}, the config says {list(shape)}."
                )
            if not math.prod(shape):
                raise CoderError(f"{self.path}: tensor {name} has shape {list(shape)}, which holds nothing.")
            if stored.dtype not in WEIGHT_DTYPES:
                raise CoderError(
                    f"{self.path}: tensor {name} has dtype {stored.dtype or 'unknown'}; weights must be floating point, "
                    "as float32, bfloat16, float16 or float64."
                )
        digest = hashlib.sha256()
        tensors = {}
        with ThreadPoolExecutor(1) as hashing, _one_torch_thread():  # hashing takes as long as all the rest
            for name in sorted(wanted):
                shape = wanted[name]
                if name in hooks_first:
                    # read into place by place, so that no second copy is made to bring the axes into order
                    out = self._room(name, (shape[1], shape[0], shape[2]), dtype, device)
                    places = [out[:, hook] for hook in range(shape[0])]
                else:
                    out = self._room(name, shape, dtype, device)
                    places = [out]
                self._fill(name, digest, hashing, places)
                tensors[name] = out
        return Weights(tensors, digest.hexdigest())

    def _room(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: str | torch.device) -> Tensor:
        try:
            return torch.empty(shape, dtype=dtype, device=device)
        except (RuntimeError, AssertionError, MemoryError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CoderError(
                f"{self.path}: there is no room for tensor {name} of shape {list(shape)} on device {device} ({first}): "
                "give another device, or a smaller dtype."
            ) from error

    def _fill(self, name: str, digest: Any, hashing: ThreadPoolExecutor, places: Sequence[Tensor]) -> None:
        """Read a tensor into ``places``, which follow each other in the file; rows of a place need not lie side by side."""
        stored = self.tensors[name]
        digest.update(f"{name}|{stored.dtype}|{stored.shape}|".encode())
        width = places[0].shape[-1] if len(places) > 1 else 1
        rows = [place if len(places) > 1 else place.view(-1, 1) for place in places]
        limits = np.cumsum([0, *(len(place) for place in rows)])
        done = 0
        for piece in _read_ahead(stored.pieces(width)):
            hashed = hashing.submit(digest.update, piece.contiguous().view(torch.uint8).numpy())
            block = piece.view(-1, width)
            while len(block):
                number = int(np.searchsorted(limits, done, side="right")) - 1
                at = done - int(limits[number])
                taken = block[: len(rows[number]) - at]
                part = rows[number][at : at + len(taken)].copy_(taken)
                self._check_finite(name, part, taken)
                block, done = block[len(taken) :], done + len(taken)
            hashed.result()
        if done != limits[-1]:
            raise CoderError(f"{self.path}: tensor {name} ends early: fetch the file again.")

    def _check_finite(self, name: str, cast: Tensor, stored: Tensor) -> None:
        # both are NaN where an entry is; twenty times as fast as looking at each
        if all(math.isfinite(extreme) for extreme in torch.aminmax(cast)):
            return
        if torch.isfinite(stored).all():
            raise CoderError(
                f"{self.path}: tensor {name} has entries beyond what {str(cast.dtype).removeprefix('torch.')} holds: "
                "load it as float32 or bfloat16."
            )
        raise CoderError(
            f"{self.path}: tensor {name} holds NaN or infinite values: the file is damaged or the training diverged."
        )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """torch's threads would only take the cores from those that read and hash (half as fast on two cores).

    The number is the process's: the first of several loads sets it, the last puts it back.
    """
    global _loads_running, _threads_before
    with _LOADING:
        if _loads_running == 0:
            _threads_before = torch.get_num_threads()
            torch.set_num_threads(1)
        _loads_running += 1
    try:
        yield
    finally:
        with _LOADING:
            _loads_running -= 1
            if _loads_running == 0:
                torch.set_num_threads(_threads_before)


def _read_ahead(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same pieces, the next one being read while one is used."""
    with ThreadPoolExecutor(1) as reading:
        coming = reading.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = reading.submit(next, pieces, None)
            yield piece
