"""Adds batches of activations to the statistics and samples of a range of latents. Compiled; numba, no torch.

Letters: B contexts of a batch, T tokens of its longest, V windows of a context, S sides, L latents of the range,
H histogram cells, nnz activations of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_core.compiled import compiled
from sae_core.fixed_point import LARGEST, PLACES
from sae_core.hashing import hash64, seed_for
from sae_core.partial import ExtractionSettings, Partial, PoolRows
from sae_core.records import HISTOGRAM_EDGES
from sae_core.reservoir import FiringReservoir, new_groups

NUM_SIDES = 3
_CELLS = len(HISTOGRAM_EDGES) + 1
_CELL_OF_BITS = np.searchsorted(
    HISTOGRAM_EDGES, (np.arange(0x7F8, dtype=np.uint32) << 20).view(np.float32), side="right"
).astype(np.int64)
"""Histogram cell of the smallest float32 with these leading 12 bits, of those that are positive and finite."""
_UNIT = float(2**PLACES)


@dataclass(frozen=True)
class Windows:
    """The windows of a batch."""

    contexts: NDArray[np.int64]
    """[B] ordinals in the corpus."""
    side: NDArray[np.int64]
    """[B]"""
    uid: NDArray[np.uint64]
    """[B, V] identity of each window, wherever it is read."""
    counts: NDArray[np.bool_]
    """[B, T] tokens that count: no padding, BOS or EOS."""
    length: int
    """Tokens of a window."""

    @property
    def exist(self) -> NDArray[np.bool_]:
        """[B, V] windows with a token that counts."""
        room = np.zeros((len(self.contexts), self.uid.shape[1] * self.length), dtype=bool)
        room[:, : self.counts.shape[1]] = self.counts
        exist: NDArray[np.bool_] = np.logical_or.reduce(room.reshape(*self.uid.shape, self.length), axis=2)
        return exist


class Accumulator:
    """Statistics and samples of latents ``latents.start <= f < latents.stop`` of one coder."""

    def __init__(self, latents: range, settings: ExtractionSettings) -> None:
        self.latents = latents
        self._settings = settings
        self._groups = new_groups(len(latents) * NUM_SIDES)
        self._histogram = np.zeros((len(latents) * NUM_SIDES, _CELLS), np.uint32)
        self._reservoir = FiringReservoir(self._groups, settings.top_exemplars, settings.sampled_exemplars)
        # what a latent's part of the keys is, so that a key costs one round of the hash
        self._latent_hash = hash64(seed_for(settings.seed, "exemplars"), np.arange(latents.start, latents.stop))
        self._slot_of = np.zeros(len(latents), np.int32)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        arrays = (self._groups, self._histogram, self._latent_hash, self._slot_of)
        return self._reservoir.nbytes + sum(array.nbytes for array in arrays)

    def add(
        self, token: NDArray[np.int64], latent: NDArray[np.int64], value: NDArray[np.float32], windows: Windows
    ) -> None:
        """Add activations [nnz]; ``token`` counts through the batch as padded to [B, T] and ascends. All finite."""
        self._reservoir.reserve(len(token))
        kept = self._reservoir.kept
        most = windows.length * int(np.bincount(token).max(initial=0)) if len(token) else 0
        _add(
            token,
            latent,
            value,
            windows.contexts * windows.uid.shape[1],
            windows.side,
            windows.uid,
            windows.counts,
            windows.length,
            self.latents.start,
            self.latents.stop,
            np.float32(self._settings.tau),
            _UNIT,
            HISTOGRAM_EDGES,
            _CELL_OF_BITS,
            self._groups,
            self._histogram,
            self._latent_hash,
            self._slot_of,
            most,
            self._reservoir.used,
            kept.group,
            kept.window,
            kept.key,
            kept.peak,
            kept.row_length,
            kept.position,
            kept.value,
        )

    def end_shard(
        self,
        first_window: int,
        last_window: int,
        num_tokens: NDArray[np.int64],
        num_windows: NDArray[np.int64],
        skipped: NDArray[np.int64],
        pool: PoolRows,
    ) -> Partial:
        """What the shard of these windows leaves behind. Counts begin anew; the samples' bounds stay for the next shard."""
        self._reservoir.clear()
        groups, shape = self._groups, (len(self.latents), NUM_SIDES)
        partial = Partial(
            first_latent=self.latents.start,
            num_tokens=num_tokens,
            num_windows=num_windows,
            skipped=skipped,
            fire_count=groups["fire_count"].reshape(shape).copy(),
            num_windows_firing=groups["num_windows"].reshape(shape).copy(),
            max_activation=groups["max"].reshape(shape).copy(),
            sum_high=groups["sum_high"].reshape(shape).copy(),
            sum_low=groups["sum_low"].reshape(shape).copy(),
            histogram=self._histogram.reshape(*shape, _CELLS).copy(),
            firings=self._reservoir.of_windows(first_window, last_window, self.latents.start * NUM_SIDES),
            pool=pool,
        )
        for name in ("fire_count", "num_windows", "max", "sum_high", "sum_low"):
            groups[name] = 0
        self._histogram[:] = 0
        return partial


@compiled
def _add(
    token: NDArray[np.int64],
    latent: NDArray[np.int64],
    value: NDArray[np.float32],
    first_window: NDArray[np.int64],
    side: NDArray[np.int64],
    uid: NDArray[np.uint64],
    counts: NDArray[np.bool_],
    length: int,
    first_latent: int,
    last_latent: int,
    tau: np.float32,
    unit: float,
    edges: NDArray[np.float64],
    cell_of_bits: NDArray[np.int64],
    groups: NDArray[np.void],
    histogram: NDArray[np.uint32],
    latent_hash: NDArray[np.uint64],
    slot_of: NDArray[np.int32],
    most: int,
    used: NDArray[np.int64],
    item_group: NDArray[np.int32],
    item_window: NDArray[np.int64],
    item_key: NDArray[np.uint64],
    item_peak: NDArray[np.float32],
    item_length: NDArray[np.uint8],
    entry_position: NDArray[np.uint8],
    entry_value: NDArray[np.float32],
) -> None:
    contexts, width = counts.shape
    slot_latent, slot_count, slot_start = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    slot_peak, slot_sum = np.empty(most, np.float32), np.empty(most, np.int64)
    seen_slot, seen_position, seen_value = (
        np.empty(most, np.int32),
        np.empty(most, np.uint8),
        np.empty(most, np.float32),
    )
    position, activation = np.empty(most, np.uint8), np.empty(most, np.float32)
    bits, one_bits = np.empty(1, np.float32), np.empty(1, np.uint32)
    one_bits = bits.view(np.uint32)
    items, entries = used[0], used[1]
    e, nnz = 0, len(token)
    for b in range(contexts):
        for w in range((width + length - 1) // length):
            begin = b * width + w * length
            end = b * width + min((w + 1) * length, width)
            slots = seen = 0
            while e < nnz and token[e] < end:
                f = latent[e] - first_latent
                v = value[e]
                place = token[e] - begin
                size = abs(v)
                e += 1
                if f < 0 or f >= last_latent - first_latent or not size > tau or not counts[b, w * length + place]:
                    continue
                slot = slot_of[f]
                # a sparse set: what other windows left in slot_of points to a slot of another latent, or to none
                if slot >= slots or slot_latent[slot] != f:
                    slot = slots
                    slot_of[f] = slot
                    slot_latent[slot] = f
                    slot_count[slot] = 0
                    slot_peak[slot] = 0
                    slot_sum[slot] = 0
                    slots += 1
                slot_count[slot] += 1
                slot_peak[slot] = max(slot_peak[slot], size)
                slot_sum[slot] += np.int64(np.rint(np.float64(v) * unit))
                seen_slot[seen] = slot
                seen_position[seen] = place
                seen_value[seen] = v
                seen += 1
            at = 0
            for slot in range(slots):
                slot_start[slot] = at
                at += slot_count[slot]
            for i in range(seen):
                at = slot_start[seen_slot[i]]
                position[at], activation[at] = seen_position[i], seen_value[i]
                slot_start[seen_slot[i]] = at + 1
            window = first_window[b] + w
            for slot in range(slots):
                f = slot_latent[slot]
                g = np.int64(f) * 3 + side[b]
                peak, count = slot_peak[slot], slot_count[slot]
                group = groups[g]
                group.fire_count += count
                group.num_windows += 1
                group.max = max(group.max, peak)
                low = group.sum_low + (slot_sum[slot] & 0xFFFFFFFF)
                group.sum_high += (slot_sum[slot] >> 32) + (low >> 32)
                group.sum_low = low & 0xFFFFFFFF
                bits[0] = peak
                cell = cell_of_bits[one_bits[0] >> 20]
                while cell < len(edges) and edges[cell] <= peak:
                    cell += 1
                histogram[g, cell] += np.uint32(1)
                key = (latent_hash[f] ^ uid[b, w]) + np.uint64(0x9E3779B97F4A7C15)
                key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                key ^= key >> np.uint64(31)
                if (
                    key <= group.sample_key
                    or peak > group.top_peak
                    or (peak == group.top_peak and key <= group.top_key)
                ):
                    item_group[items], item_window[items], item_key[items] = g, window, key
                    item_peak[items], item_length[items] = peak, count
                    items += 1
                    stop = slot_start[slot]
                    for i in range(stop - count, stop):
                        entry_position[entries], entry_value[entries] = position[i], activation[i]
                        entries += 1
    used[0], used[1] = items, entries


def pool_rows(
    token: NDArray[np.int64],
    latent: NDArray[np.int64],
    value: NDArray[np.float32],
    windows: Windows,
    chosen: NDArray[np.bool_],
    latents: range,
    tau: float,
) -> PoolRows:
    """The ``chosen`` [B, V] windows of a batch with their activations of ``latents``, tokens in order."""
    rows = np.zeros(int(chosen.sum()), np.int32)
    out = np.empty(len(token), np.int32), np.empty(len(token), np.uint8), np.empty(len(token), np.float32)
    total = _copy_pool(
        token,
        latent,
        value,
        windows.counts,
        windows.length,
        latents.start,
        latents.stop,
        np.float32(tau),
        chosen,
        rows,
        *out,
    )
    return PoolRows(
        (windows.contexts[:, None] * chosen.shape[1] + np.arange(chosen.shape[1]))[chosen],
        rows,
        out[0][:total].copy(),
        out[1][:total].copy(),
        out[2][:total].copy(),
    )


@compiled
def _copy_pool(
    token: NDArray[np.int64],
    latent: NDArray[np.int64],
    value: NDArray[np.float32],
    counts: NDArray[np.bool_],
    length: int,
    first_latent: int,
    last_latent: int,
    tau: np.float32,
    chosen: NDArray[np.bool_],
    rows: NDArray[np.int32],
    out_latent: NDArray[np.int32],
    out_position: NDArray[np.uint8],
    out_value: NDArray[np.float32],
) -> int:
    """Copy the entries of chosen windows; their numbers go to ``rows``, their sum is returned."""
    contexts, width = counts.shape
    e, nnz, row, place = 0, len(token), 0, 0
    for b in range(contexts):
        for w in range(chosen.shape[1]):
            begin = b * width + w * length
            end = b * width + min((w + 1) * length, width)
            before = place
            while e < nnz and token[e] < end:
                position = token[e] - begin
                if (
                    chosen[b, w]
                    and abs(value[e]) > tau
                    and first_latent <= latent[e] < last_latent
                    and counts[b, w * length + position]
                ):
                    out_latent[place], out_position[place], out_value[place] = latent[e], position, value[e]
                    place += 1
                e += 1
            if chosen[b, w]:
                rows[row] = place - before
                row += 1
    return place


def beyond_sums(value: NDArray[np.float32]) -> bool:
    """Whether activations are NaN, infinite or too large to be added up."""
    return not bool((np.abs(value) < LARGEST).all())
