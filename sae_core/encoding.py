"""Batches of tokens to activations on the host, on one device or on several at once.

Letters: B contexts of a batch, T tokens of its longest, nnz activations of a batch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_core.attachment import AttachedCoder
from sae_core.errors import SubjectError
from sae_core.non_finite import first_bad_module
from sae_core.subject import SubjectModel

_BATCHES_A_GPU = 2
"""Batches in flight on a GPU: while one waits for its results, the other's work is queued already."""


class BatchActivations(NamedTuple):
    """One coder's activations on one batch."""

    token: NDArray[np.int64]
    """[nnz] place in the batch as padded to [B, T], ascending."""
    latent: NDArray[np.int64]
    """[nnz]"""
    value: NDArray[np.float32]
    """[nnz] never 0."""
    non_finite: NDArray[np.bool_]
    """[B] contexts on which what the coder reads is NaN or infinite somewhere."""


class Replica:
    """A subject and coders on one device."""

    def __init__(self, subject: SubjectModel, coders: Sequence[AttachedCoder]) -> None:
        self.subject = subject
        self.coders = list(coders)
        self._hookpoints = list(dict.fromkeys(place for attached in coders for place in attached.read))
        self._lock = threading.Lock()
        self._own = threading.local()
        self._most_contexts: int | None = None

    def copy_to(self, device: str | torch.device) -> Replica:
        """The same subject and coders on another device."""
        coders = [replace(attached, coder=moved(attached.coder, device)) for attached in self.coders]
        return Replica(self.subject.copy_to(device), coders)

    def _stream(self) -> Any:
        """The calling thread's stream: the allocator keeps memory for each stream apart."""
        if not hasattr(self._own, "stream"):
            make: Any = torch.cuda.Stream
            self._own.stream = make(self.subject.device)
        return self._own.stream

    @property
    def is_gpu(self) -> bool:
        return self.subject.device.type == "cuda"

    def activations(self, tokens: NDArray[np.int32]) -> list[BatchActivations]:
        """One for each coder, of ``tokens`` [B, T], -1 where a row is padded; in halves where memory does not suffice.

        Errors: SubjectError where it does not suffice for one context.
        """
        most = self._most_contexts or len(tokens)
        if len(tokens) > most:
            parts = [tokens[start : start + most] for start in range(0, len(tokens), most)]
            return _joined([self.activations(part) for part in parts], most * tokens.shape[1])
        try:
            return self._activations(tokens)
        except torch.OutOfMemoryError as error:
            if len(tokens) == 1:
                raise SubjectError(
                    f"the memory of {self.subject.device} does not hold one context of {tokens.shape[1]} tokens beside "
                    "the weights: lower extraction.context_length, or choose another subject.dtype or device."
                ) from error
        # outside of the handler, whose traceback keeps the failed batch's tensors alive
        if self.is_gpu:
            torch.cuda.empty_cache()
        self._most_contexts = (len(tokens) + 1) // 2
        return self.activations(tokens)

    def first_bad_module(self, tokens: NDArray[np.int32]) -> str | None:
        """The first module whose output is not finite on ``tokens`` [T]; None where all are."""
        with self._lock:
            return first_bad_module(self.subject, tokens)

    def _activations(self, tokens: NDArray[np.int32]) -> list[BatchActivations]:
        stream = self._stream() if self.is_gpu else None
        with torch.cuda.stream(stream) if stream is not None else nullcontext(), torch.inference_mode():
            given = torch.from_numpy(np.maximum(tokens, 0)).long()
            if self.is_gpu:
                given = given.pin_memory().to(self.subject.device, non_blocking=True)
            with self._lock:  # hooks are on the modules, which the threads of a device share
                captured = self.subject.capture(given, self._hookpoints)
            real = torch.from_numpy(tokens >= 0)
            found = []
            for attached in self.coders:
                hidden = attached.inputs(captured)
                bad = ~torch.isfinite(hidden).all(dim=-1) & real.to(hidden.device, non_blocking=True)
                acts = attached.coder.encode_sparse(hidden.reshape(-1, hidden.shape[-1]))
                found.append(
                    BatchActivations(
                        _host(acts.token), _host(acts.latent), _host(acts.value.float()), _host(bad.any(dim=-1))
                    )
                )
            return found


Part = TypeVar("Part")


def moved(part: Part, device: str | torch.device) -> Part:
    """A coder, or a part of one, with its tensors on another device."""
    found: Any = part
    if isinstance(found, Tensor):
        found = found.to(device)
    elif is_dataclass(found) and not isinstance(found, type):
        found = replace(found, **{f.name: moved(getattr(found, f.name), device) for f in fields(found) if f.init})
    return cast(Part, found)


def replicas_on_all_gpus(replica: Replica) -> list[Replica]:
    """The replica, and where it is on a GPU a copy of it for each other GPU of the machine."""
    if not replica.is_gpu:
        return [replica]
    here = replica.subject.device.index or 0
    others = [number for number in range(torch.cuda.device_count()) if number != here]
    return [replica, *(replica.copy_to(f"cuda:{number}") for number in others)]


def encode_batches(
    replicas: Sequence[Replica], batches: Iterable[tuple[NDArray[np.int64], NDArray[np.int32]]]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32], list[BatchActivations]]]:
    """``(contexts [B], tokens [B, T])`` with the activations of each coder added, in the given order.

    Several replicas, and a GPU beside its host, work at the same time; on one CPU, which is busy anyway, nothing does.
    """
    if len(replicas) == 1 and not replicas[0].is_gpu:
        for contexts, tokens in batches:
            yield contexts, tokens, replicas[0].activations(tokens)
        return
    slots = [replica for _ in range(_BATCHES_A_GPU) for replica in replicas]
    waiting: deque[tuple[NDArray[np.int64], NDArray[np.int32], Future[list[BatchActivations]]]] = deque()
    with ThreadPoolExecutor(len(slots), thread_name_prefix="encode") as workers:
        for number, (contexts, tokens) in enumerate(batches):
            replica = slots[number % len(slots)]
            waiting.append((contexts, tokens, workers.submit(replica.activations, tokens)))
            if len(waiting) > len(slots):
                contexts, tokens, future = waiting.popleft()
                yield contexts, tokens, future.result()
        while waiting:
            contexts, tokens, future = waiting.popleft()
            yield contexts, tokens, future.result()


def _host(tensor: Tensor) -> Any:
    return tensor.cpu().numpy()


def _joined(parts: list[list[BatchActivations]], tokens_a_part: int) -> list[BatchActivations]:
    """The activations of consecutive parts of a batch as one batch's."""
    return [
        BatchActivations(
            np.concatenate([part.token + number * tokens_a_part for number, part in enumerate(of_coder)]),
            np.concatenate([part.latent for part in of_coder]),
            np.concatenate([part.value for part in of_coder]),
            np.concatenate([part.non_finite for part in of_coder]),
        )
        for of_coder in zip(*parts, strict=True)
    ]
