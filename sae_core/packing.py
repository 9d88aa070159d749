"""Documents of one side joined by the EOS and cut into full contexts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class PackedContext(NamedTuple):
    """One cut of a side's stream, the BOS not in it."""

    ids: NDArray[np.int32]
    """[tokens] as many as a context holds; fewer in the last one of a side."""
    document: int
    """Ordinal of the document in which its first token of text stands."""
    digest: int
    """That document's digest."""
    offset: int
    """Place of that token in the document."""


@dataclass
class _Stream:
    """What a side has been given and is not yet cut."""

    ids: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    first: tuple[int, int, int] = (0, 0, 0)
    """(document, digest, offset) of the first token of text in ``ids``."""
    separate: bool = False
    """Whether an EOS must come before the next document."""


class Packer:
    """Takes documents one after the other and gives the contexts that are full; a context stands on one side."""

    def __init__(self, length: int, eos_id: int) -> None:
        """``length`` is the tokens of a context beside its BOS, at least 2, so that each holds a token of text."""
        assert length >= 2
        self._length = length
        self._eos = np.asarray([eos_id], dtype=np.int32)
        self._streams: dict[int, _Stream] = {}

    def add(self, ids: NDArray[np.int32], document: int, digest: int, side: int) -> list[PackedContext]:
        """The contexts that a document fills; ``ids`` [tokens] has a token at least."""
        stream = self._streams.setdefault(side, _Stream())
        pending, length = len(stream.ids), self._length
        joined = np.concatenate([stream.ids, self._eos[: int(stream.separate)], ids])
        text_start = len(joined) - len(ids)
        firsts = [
            (document, digest, max(start - text_start, 0)) if start or not pending else stream.first
            for start in range(0, len(joined), length)
        ]
        full = len(joined) // length
        stream.ids = joined[full * length :].copy()
        if len(stream.ids):
            stream.first = firsts[full]
        stream.separate = int(ids[-1]) != int(self._eos[0])
        return [PackedContext(joined[n * length : (n + 1) * length], *firsts[n]) for n in range(full)]

    def rest(self) -> list[tuple[int, PackedContext]]:
        """``(side, context)`` of what fills no context, by side."""
        return [
            (side, PackedContext(stream.ids, *stream.first))
            for side, stream in sorted(self._streams.items())
            if len(stream.ids)
        ]
