"""The firing windows of each latent and side that are worth keeping: the strongest, and a uniform sample.

What is kept are the items that come first in a total order, so the result does not depend on the order of arrival:
shards of a corpus merge to exactly what one pass gives (METHODS 1). The inner loops are compiled; numba, no torch.
Letters: G groups (latent * S + side), M items, R activations of all items.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from sae_core.compiled import compiled
from sae_core.partial import Firings

GROUP = np.dtype(
    [
        ("fire_count", np.int64),
        ("num_windows", np.int64),
        ("sum_high", np.int64),
        ("sum_low", np.int64),
        ("top_key", np.uint64),
        ("sample_key", np.uint64),
        ("top_peak", np.float32),
        ("max", np.float32),
        ("_", np.int64),
    ]
)
"""One group: its statistics, and the last items of its top and of its sample. A cache line, as groups come in no order."""
TOP, SAMPLED = np.uint8(1), np.uint8(2)
_LAST_KEY = np.uint64(0xFFFFFFFFFFFFFFFF)


def new_groups(num_groups: int) -> NDArray[np.void]:
    """[G] groups that have seen nothing and so admit everything."""
    groups = np.zeros(num_groups, GROUP)
    groups["top_peak"] = -1
    groups["top_key"] = groups["sample_key"] = _LAST_KEY
    return groups


class FiringReservoir:
    """Items that were admitted, in the order of arrival, cleared of what later ones crowd out when room runs short."""

    def __init__(self, groups: NDArray[np.void], top: int, sampled: int) -> None:
        self.groups = groups
        self.top, self.sampled = top, sampled
        self.used = np.zeros(2, np.int64)
        """Items and activations that are there; the arrays below are longer."""
        self.kept = _room(1024, 4096)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(getattr(self.kept, field.name).nbytes for field in fields(Firings))

    def reserve(self, entries: int) -> None:
        """Make sure that ``entries`` more activations, in as many items at worst, have room."""
        items, rows = len(self.kept.group), len(self.kept.value)
        if self.used[0] + entries <= items and self.used[1] + entries <= rows:
            return
        self.clear()
        # where clearing leaves more than two thirds, it would be called for again soon
        items_need, rows_need = int(self.used[0]) + entries, int(self.used[1]) + entries
        items = items if 3 * items_need <= 2 * items else 3 * items_need // 2
        rows = rows if 3 * rows_need <= 2 * rows else 3 * rows_need // 2
        if items > len(self.kept.group) or rows > len(self.kept.value):
            longer, used = _room(items, rows), self.used
            for field in fields(Firings):
                of_item = field.name not in ("position", "value")
                part = slice(int(used[0] if of_item else used[1]))
                getattr(longer, field.name)[part] = getattr(self.kept, field.name)[part]
            self.kept = longer

    def clear(self) -> None:
        """Drop what is in neither the top nor the sample of its group any more, and bring the groups' bounds up to date."""
        items, kept = int(self.used[0]), self.kept
        order, starts = by_group(kept.group[:items], len(self.groups))
        keep = np.zeros(items, np.uint8)
        choose(order, starts, kept.key, kept.peak, self.top, self.sampled, keep, self.groups, True)
        self.used[:] = _compact(
            keep, kept.group, kept.window, kept.key, kept.peak, kept.row_length, kept.position, kept.value
        )

    def of_windows(self, first: int, last: int, first_group: int) -> Firings:
        """The items of windows ``first <= window < last``, ordered by group; ``first_group`` is what group 0 is called."""
        items, kept = int(self.used[0]), self.kept
        order, _ = by_group(kept.group[:items], len(self.groups))
        window = kept.window[order]
        order = order[(window >= first) & (window < last)]
        found = taken(kept, order)
        found.group[:] += np.int32(first_group)
        return found


def taken(firings: Firings, items: NDArray[np.int64]) -> Firings:
    """A copy of the given items with their activations, in the given order."""
    lengths = firings.row_length.astype(np.int64)
    rows = ranges((np.cumsum(lengths) - lengths)[items], lengths[items])
    return Firings(
        group=firings.group[items],
        window=firings.window[items],
        key=firings.key[items],
        peak=firings.peak[items],
        row_length=firings.row_length[items],
        position=firings.position[rows],
        value=firings.value[rows],
    )


def _room(items: int, entries: int) -> Firings:
    return Firings(
        np.empty(items, np.int32),
        np.empty(items, np.int64),
        np.empty(items, np.uint64),
        np.empty(items, np.float32),
        np.empty(items, np.uint8),
        np.empty(entries, np.uint8),
        np.empty(entries, np.float32),
    )


@compiled
def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """``concatenate([arange(s, s + n) for s, n in zip(starts, lengths)])``."""
    out = np.empty(lengths.sum(), np.int64)
    place = 0
    for i in range(len(starts)):
        for j in range(lengths[i]):
            out[place] = starts[i] + j
            place += 1
    return out


@compiled
def by_group(group: NDArray[np.int32], num_groups: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``(order [M], starts [G + 1])``: group g's items are ``order[starts[g]:starts[g + 1]]``, in the order they stand in."""
    starts = np.zeros(num_groups + 1, np.int64)
    for i in range(len(group)):
        starts[group[i] + 1] += 1
    for g in range(num_groups):
        starts[g + 1] += starts[g]
    place = starts[:-1].copy()
    order = np.empty(len(group), np.int64)
    for i in range(len(group)):
        order[place[group[i]]] = i
        place[group[i]] += 1
    return order, starts


@compiled
def choose(
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    key: NDArray[np.uint64],
    peak: NDArray[np.float32],
    top: int,
    sampled: int,
    keep: NDArray[np.uint8],
    groups: NDArray[np.void],
    tell_groups: bool,
) -> None:
    """Mark in ``keep`` [M] the items of each group's top and sample; with ``tell_groups`` note their last ones in ``groups``."""
    best = np.empty(max(top, 1), np.int64)
    drawn = np.empty(max(sampled, 1), np.int64)
    for g in range(len(starts) - 1):
        num_best = num_drawn = 0
        for o in range(starts[g], starts[g + 1]):
            i = order[o]
            if num_best < top or comes_before(peak[i], key[i], peak[best[num_best - 1]], key[best[num_best - 1]]):
                num_best = min(num_best + 1, top)
                p = num_best - 1
                while p > 0 and comes_before(peak[i], key[i], peak[best[p - 1]], key[best[p - 1]]):
                    best[p] = best[p - 1]
                    p -= 1
                best[p] = i
            if num_drawn < sampled or key[i] < key[drawn[num_drawn - 1]]:
                num_drawn = min(num_drawn + 1, sampled)
                p = num_drawn - 1
                while p > 0 and key[i] < key[drawn[p - 1]]:
                    drawn[p] = drawn[p - 1]
                    p -= 1
                drawn[p] = i
        for p in range(num_best):
            keep[best[p]] |= TOP
        for p in range(num_drawn):
            keep[drawn[p]] |= SAMPLED
        if tell_groups:
            if num_best == top:
                groups[g].top_peak = peak[best[top - 1]]
                groups[g].top_key = key[best[top - 1]]
            if num_drawn == sampled:
                groups[g].sample_key = key[drawn[sampled - 1]]


@compiled
def comes_before(peak: float, key: int, other_peak: float, other_key: int) -> bool:
    """The order of the top: the stronger first, then the smaller key."""
    return peak > other_peak or (peak == other_peak and key < other_key)


@compiled
def _compact(
    keep: NDArray[np.uint8],
    group: NDArray[np.int32],
    window: NDArray[np.int64],
    key: NDArray[np.uint64],
    peak: NDArray[np.float32],
    row_length: NDArray[np.uint8],
    position: NDArray[np.uint8],
    value: NDArray[np.float32],
) -> tuple[int, int]:
    """Move what is kept together, in place; returns items and activations."""
    items = rows = source = 0
    for i in range(len(keep)):
        length = int(row_length[i])
        if keep[i]:
            group[items], window[items], key[items] = group[i], window[i], key[i]
            peak[items], row_length[items] = peak[i], row_length[i]
            if rows != source:
                for r in range(length):
                    position[rows + r] = position[source + r]
                    value[rows + r] = value[source + r]
            items += 1
            rows += length
        source += length
    return items, rows
