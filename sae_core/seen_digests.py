"""A set of 64-bit digests in 12 to 24 bytes each, half as much again while it grows; Python's own takes about 100."""

from __future__ import annotations

from array import array

_START = 1 << 12


class SeenDigests:
    """Signed 64-bit numbers that have been met: a table with open addressing, at most two thirds full."""

    def __init__(self) -> None:
        self._table = array("q", bytes(8 * _START))
        self._count = 0
        self._zero = False  # 0 marks a free place

    def __len__(self) -> int:
        return self._count + self._zero

    def add(self, digest: int) -> bool:
        """Whether it is new."""
        if digest == 0:
            new, self._zero = not self._zero, True
            return new
        if not _put(self._table, digest):
            return False
        self._count += 1
        if 3 * self._count > 2 * len(self._table):
            larger = array("q", bytes(16 * len(self._table)))
            for old in self._table:
                if old:
                    _put(larger, old)
            self._table = larger
        return True


def _put(table: array[int], digest: int) -> bool:
    mask = len(table) - 1
    place = digest & mask
    while (there := table[place]) != 0:
        if there == digest:
            return False
        place = (place + 1) & mask
    table[place] = digest
    return True
