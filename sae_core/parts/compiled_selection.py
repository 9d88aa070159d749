"""Compiled CPU selection of the latents that fire, from dense pre-activations, in one pass over each row.

The twins of what :mod:`sae_core.parts.activation` writes with torch; a test holds them together.
Letters: N tokens, L latents, K active latents of a token.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_core.compiled import compiled, compiled_for_finite

_LANES = 16
"""float32 values of one vector register; blocks are cut in multiples of it so that the maxima vectorise."""
_INFINITY = np.int32(0x7F800000)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_CHUNK = 128
_LOWEST = np.int32(-0x7F800000)
"""The lowest finite number, in the order of :func:`_order`."""
_ROWS_A_THREAD = 64
"""Rows from which another thread pays."""


class Entries(NamedTuple):
    """What was chosen, row after row. A row that holds a NaN or an infinite value gives one entry: latent 0, NaN."""

    token: Tensor
    """[nnz] int64, ascending."""
    latent: Tensor
    """[nnz] int64."""
    value: Tensor
    """[nnz] float32, never 0."""


def applies_to(pre_NL: Tensor) -> bool:
    """Whether these pre-activations are of the kind that is compiled for."""
    return pre_NL.device.type == "cpu" and pre_NL.dtype == torch.float32 and pre_NL.dim() == 2 and pre_NL.shape[1] > 0


def top_k(pre_NL: Tensor, k: int, rectify: bool) -> Entries:
    """The ``k`` largest of each row; with ``rectify`` those of them above 0.

    Of equal values those with the smallest latents are taken.
    """
    pre = pre_NL.contiguous().numpy()
    rows, latents = pre.shape
    latent, value, count = np.empty((rows, k), np.int64), np.empty((rows, k), np.float32), np.zeros(rows, np.int64)
    _by_rows(_top_k, rows, pre, k, _num_blocks(latents, k), rectify, latent, value, count)
    return _entries(latent, value, count)


def above(pre_NL: Tensor, threshold: Tensor, rectify: bool, room: int = 256) -> Entries:
    """Entries of each row that exceed their latent's ``threshold``, [L] or [1].

    What ``rectify`` turns to 0 is left out. ``room`` is a first guess of the most in a row.
    """
    pre, floors = pre_NL.contiguous().numpy(), threshold.contiguous().numpy()
    rows, latents = pre.shape
    room = min(room, latents)
    while True:
        latent, value = np.empty((rows, room), np.int64), np.empty((rows, room), np.float32)
        count = np.zeros(rows, np.int64)
        _by_rows(_above, rows, pre, floors, rectify, latent, value, count)
        most = int(count.max(initial=0))
        if most <= room:
            return _entries(latent, value, count)
        room = min(latents, most)


def _entries(latent: NDArray[np.int64], value: NDArray[np.float32], count: NDArray[np.int64]) -> Entries:
    return Entries(*map(torch.from_numpy, _gather(latent, value, count)))


@compiled
def _gather(
    latent: NDArray[np.int64], value: NDArray[np.float32], count: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """``(token, latent, value)`` of rows of which the first ``count`` entries hold, -1 for a row that is not finite."""
    total = 0
    for row in range(len(count)):
        total += count[row] < 0
        for entry in range(count[row]):
            total += value[row, entry] != 0
    tokens, latents = np.empty(total, np.int64), np.empty(total, np.int64)
    values = np.empty(total, np.float32)
    place = 0
    for row in range(len(count)):
        if count[row] < 0:
            tokens[place], latents[place], values[place] = row, 0, np.nan
            place += 1
        for entry in range(count[row]):
            if value[row, entry] != 0:
                tokens[place] = row
                latents[place] = latent[row, entry]
                values[place] = value[row, entry]
                place += 1
    return tokens, latents, values


def _num_blocks(latents: int, k: int) -> int:
    """Blocks of a row: enough that the k-th largest of their maxima is a tight bound, few enough that they stay short."""
    blocks = min(max(8 * k, latents // 32), latents // 4) // _LANES * _LANES
    return min(latents, max(_LANES, blocks))


def _by_rows(kernel: Any, rows: int, pre: NDArray[np.float32], *args: Any) -> None:
    """Run ``kernel(first, last, pre, *args)`` over the rows, cut among as many threads as torch has."""
    threads = max(1, min(torch.get_num_threads(), rows // _ROWS_A_THREAD))
    edges = [rows * part // threads for part in range(threads + 1)]
    others = [_pool().submit(kernel, edges[part], edges[part + 1], pre, *args) for part in range(1, threads)]
    kernel(edges[0], edges[1], pre, *args)
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="select")


@compiled
def _finite(bits: NDArray[np.int32]) -> bool:
    """Whether float32 values, given as their bits, are neither NaN nor infinite."""
    largest = np.int32(0)
    for i in range(len(bits)):
        largest = max(largest, bits[i] & _MAGNITUDE)
    return bool(largest < _INFINITY)


@compiled_for_finite
def _block_maxima(row: NDArray[np.float32], maxima: NDArray[np.float32]) -> None:
    """Maximum of each block, block b being every len(maxima)-th value from b on."""
    blocks, latents = len(maxima), len(row)
    for b in range(blocks):
        maxima[b] = row[b]
    for start in range(blocks, latents - blocks + 1, blocks):
        part = row[start : start + blocks]
        for b in range(blocks):
            maxima[b] = max(part[b], maxima[b])
    rest = latents // blocks * blocks
    for b in range(latents - rest):
        maxima[b] = max(row[rest + b], maxima[b])


@compiled
def _order(values: NDArray[np.float32], ordered: NDArray[np.int32]) -> None:
    """Integers that stand in the order of finite floats; 0.0 and -0.0 become neighbours."""
    bits = values.view(np.int32)
    for i in range(len(bits)):
        ordered[i] = bits[i] ^ ((bits[i] >> np.int32(31)) & _MAGNITUDE)


@compiled
def _unordered(number: np.int32) -> np.float32:
    """The float that :func:`_order` gives this number for."""
    bits = np.empty(1, np.int32)
    bits[0] = number ^ ((number >> np.int32(31)) & _MAGNITUDE)
    return np.float32(bits.view(np.float32)[0])


@compiled
def _kth_largest(values: NDArray[np.int32], k: int, slack: int) -> int:
    """A bound that at least k and at most k + slack of ``values`` reach, or the k-th largest itself where there are ties.

    Halves the interval and counts, which vectorises; a quickselect's branches would be mispredicted half of the time.
    """
    low, high = int(values[0]), int(values[0])
    for i in range(len(values)):
        low = min(low, int(values[i]))
        high = max(high, int(values[i]))
    high += 1
    while high - low > 1:
        middle = (low + high) >> 1
        bound = np.int32(middle)
        reach = 0
        for i in range(len(values)):
            reach += values[i] >= bound
        if reach >= k:
            low = middle
            if reach <= k + slack:
                break
        else:
            high = middle
    return low


@compiled
def _top_k(
    first: int,
    last: int,
    pre: NDArray[np.float32],
    k: int,
    blocks: int,
    rectify: bool,
    latent: NDArray[np.int64],
    value: NDArray[np.float32],
    count: NDArray[np.int64],
) -> None:
    latents = pre.shape[1]
    bits = pre.view(np.int32)
    maxima, ordered = np.empty(blocks, np.float32), np.empty(max(blocks, latents), np.int32)
    candidates, hot = np.empty(latents + 1, np.int64), np.empty(blocks + 1, np.int64)
    values = np.empty(latents + 1, np.float32)
    for n in range(first, last):
        row = pre[n]
        if not _finite(bits[n]):
            count[n] = -1
            continue
        # at least k values reach the k-th largest block maximum, so what is below it cannot be among the k largest
        _block_maxima(row, maxima)
        _order(maxima, ordered[:blocks])
        bound = np.int32(_kth_largest(ordered[:blocks], k, k // 4)) if k <= blocks else _LOWEST
        if rectify:
            bound = max(bound, np.int32(1))
        # written always and counted where it holds: a branch would be mispredicted once a candidate
        chosen = 0
        for b in range(blocks):
            hot[chosen] = b
            chosen += ordered[b] >= bound
        floor = _unordered(bound)
        found = 0
        for h in range(chosen):
            for i in range(hot[h], latents, blocks):
                x = row[i]
                candidates[found] = i
                values[found] = x
                found += x >= floor
        if found <= k:
            for c in range(found):
                latent[n, c] = candidates[c]
                value[n, c] = values[c]
            count[n] = found
            continue
        _order(values[:found], ordered[:found])
        cut = _kth_largest(ordered[:found], k, 0)
        room, equal = k, 0
        for c in range(found):
            room -= ordered[c] > cut
            equal += ordered[c] == cut
        if equal > room:
            # which of the equal ones are taken must not depend on the order of the blocks
            candidates[:found].sort()
            for c in range(found):
                values[c] = row[candidates[c]]
            _order(values[:found], ordered[:found])
        kept = 0
        for c in range(found):
            if ordered[c] > cut or (ordered[c] == cut and room > 0):
                room -= ordered[c] == cut
                latent[n, kept] = candidates[c]
                value[n, kept] = values[c]
                kept += 1
        count[n] = kept


@compiled_for_finite
def _exceeds(values: NDArray[np.float32], floor: np.float32) -> bool:
    largest = values[0]
    for i in range(len(values)):
        largest = max(largest, values[i])
    return bool(largest > floor)


@compiled_for_finite
def _exceeds_own(values: NDArray[np.float32], floors: NDArray[np.float32]) -> bool:
    largest = values[0] - floors[0]
    for i in range(len(values)):
        largest = max(largest, values[i] - floors[i])
    return bool(largest > 0)


@compiled
def _above(
    first: int,
    last: int,
    pre: NDArray[np.float32],
    threshold: NDArray[np.float32],
    rectify: bool,
    latent: NDArray[np.int64],
    value: NDArray[np.float32],
    count: NDArray[np.int64],
) -> None:
    latents, room = pre.shape[1], latent.shape[1]
    one = len(threshold) == 1
    bits = pre.view(np.int32)
    for n in range(first, last):
        row = pre[n]
        found = 0
        if not _finite(bits[n]):
            count[n] = -1
            continue
        for start in range(0, latents, _CHUNK):
            stop = min(start + _CHUNK, latents)
            if one:
                if not _exceeds(row[start:stop], threshold[0]):
                    continue
            elif not _exceeds_own(row[start:stop], threshold[start:stop]):
                continue
            for i in range(start, stop):
                x = row[i]
                fires = x > (threshold[0] if one else threshold[i]) and (x > 0 or (x < 0 and not rectify))
                if found < room:
                    latent[n, found] = i
                    value[n, found] = x
                found += fires
        count[n] = found
