"""Weights on disk, read once and straight into memory of the wanted dtype: safetensors, npz and torch pickles.

What a file holds (names, shapes, dtypes) is known before a weight is read. Reading then goes through the file in
pieces: each is hashed, checked for NaN and infinity and cast into its place, so that nothing but the weights
themselves is ever held.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_core.errors import CoderError

_PIECE_BYTES = 1 << 23
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool,
}  # fmt: skip
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What weights may be stored in, and be loaded as."""
_DEFLATE_LIMIT = 1032
"""How many bytes one byte of a compressed archive can stand for at most."""


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


_PICKLES_ALLOWED: ContextVar[bool] = ContextVar("pickles_allowed", default=True)


@contextmanager
def pickles_forbidden() -> Iterator[None]:
    """While this is open, no pickle is read, whatever ``allow_pickle`` says: for code that works on strangers' requests."""
    token = _PICKLES_ALLOWED.set(False)
    try:
        yield
    finally:
        _PICKLES_ALLOWED.reset(token)


def open_stored(path: Path, *, allow_pickle: bool = False) -> StoredFile:
    """Look into a file of weights, by its ending: ``.safetensors``, ``.npz``, else a torch pickle.

    A pickle is opened only with ``allow_pickle``, and then with ``weights_only=True``.
    Raises CoderError for a file that is truncated, no such file, or holds objects instead of arrays.
    """
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix == ".npz":
        return _npz(path)
    if not _PICKLES_ALLOWED.get():
        raise CoderError(
            f"{path.name} is a torch pickle, and a service never opens one, whatever a request asks for: convert it to safetensors."
        )
    if not allow_pickle:
        raise CoderError(
            f"{path.name} is a torch pickle, which could run code when it is read: set allow_pickle to read its tensors "
            "(and nothing else of it), or convert it to safetensors."
        )
    return _pickle(path)


def _safetensors(path: Path) -> StoredFile:
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


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """torch's threads would only take the cores from those that read and hash (half as fast on two cores)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read_ahead(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same pieces, the next one being read while one is used."""
    with ThreadPoolExecutor(1) as reading:
        coming = reading.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = reading.submit(next, pieces, None)
            yield piece


def _file_pieces(path: Path, begin: int, size: int, dtype: torch.dtype) -> Callable[[int], Iterator[Tensor]]:
    def pieces(width: int) -> Iterator[Tensor]:
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            yield from _stream_pieces(file, size, dtype, width)

    return pieces


def _stream_pieces(file: IO[bytes], size: int, dtype: torch.dtype, width: int) -> Iterator[Tensor]:
    row_bytes = width * dtype.itemsize
    length = min(max(_PIECE_BYTES // row_bytes, 1) * row_bytes, max(size, 1))
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


def _npz(path: Path) -> StoredFile:
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
                yield from _stream_pieces(file, size, dtype, width)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise CoderError(f"{path} is damaged ({error}): fetch it again.") from error

    return pieces


def _pickle(path: Path) -> StoredFile:
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
        step = max(1, _PIECE_BYTES // row_bytes)
        for start in range(0, len(value), step):
            yield value[start : start + step].reshape(-1)

    return pieces
