"""Adds the shards' partials up to one exemplar store, a slice of latents after the other. numba, no torch.

Letters: S sides (3), L latents of the coder, l latents of a slice, X windows of a slice's exemplars, E exemplars,
R activations of all exemplars, T tokens of a window, P tokens of context before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from sae_core.compiled import compiled
from sae_core.exemplar_store import FORMAT_VERSION, ExemplarStore, compact_tokens
from sae_core.fixed_point import as_float, carried
from sae_core.partial import ExtractionSettings, Firings, Partial, PoolRows
from sae_core.pool_sample import PoolSample
from sae_core.records import HISTOGRAM_EDGES, Side, Source
from sae_core.reservoir import by_group, choose, new_groups, taken
from sae_core.tensor_file import create
from sae_core.tokens import TokenCorpus

SLICE_LATENTS = 32_768
"""Latents of one file of exemplars, which are merged at once."""
_NUM_SIDES = len(Side)


def merge_partials(
    partials: Iterable[Path],
    source: Source,
    settings: ExtractionSettings,
    corpus: TokenCorpus,
    folder: Path,
    pool: PoolSample | None = None,
) -> ExemplarStore:
    """Add up partials, in any order, into the store at ``folder`` (replaced if it is there).

    Each shard of the corpus must be there once for each range of latents. The folder appears in one rename, complete.
    ``pool`` says which windows the pools hold; without it, all that the partials have, which is the same where the corpus
    was whole when they were made.
    """
    parts = _in_order(partials)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    num_windows, skipped = _save_statistics(parts, source.num_latents, temporary / "statistics.safetensors")
    for number, first in enumerate(range(0, source.num_latents, SLICE_LATENTS)):
        latents = range(first, min(source.num_latents, first + SLICE_LATENTS))
        _save_exemplars(parts, latents, settings, corpus, temporary / f"exemplars-{number:05d}.safetensors")
    for side in Side:
        _save_pool(parts, side, source.num_latents, settings, corpus, temporary, pool)
    shutil.copyfile(corpus.folder / "tokenizer.json", temporary / "tokenizer.json")
    index = {
        "format_version": FORMAT_VERSION,
        "source": asdict(source),
        "settings": asdict(settings),
        "corpus_fingerprint": corpus.fingerprint,
        "windows_of_side": num_windows.tolist(),
        "skipped_contexts": int(skipped[0]),
        "skipped_tokens": int(skipped[1]),
        "slice_latents": SLICE_LATENTS,
        "sha256": {path.name: _sha256(path) for path in sorted(temporary.iterdir())},
    }
    (temporary / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return ExemplarStore.open(folder)


def _in_order(partials: Iterable[Path]) -> list[Path]:
    """By latents, then by place in the corpus: shards are stretches of it."""

    def place(path: Path) -> tuple[int, int]:
        part = Partial.load(path)
        windows = [part.pool.window, part.firings.window]
        return part.first_latent, min((int(w.min()) for w in windows if len(w)), default=-1)

    return sorted(partials, key=place)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save_statistics(
    parts: Sequence[Path], num_latents: int, path: Path
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Writes the statistics; returns the windows of each side [S], and the contexts and tokens that were skipped [2]."""
    shape, cells = (_NUM_SIDES, num_latents), len(HISTOGRAM_EDGES) + 1
    out = create(
        path,
        {
            "num_tokens": (np.int64, (_NUM_SIDES,)),
            "num_windows": (np.int64, (_NUM_SIDES,)),
            "fire_count": (np.int64, shape),
            "num_windows_firing": (np.int64, shape),
            "max_activation": (np.float32, shape),
            "sum_activation": (np.float64, shape),
            "histogram": (np.int64, (*shape, cells)),
        },
    )
    high, low, skipped = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(2, np.int64)
    for name in parts:
        part = Partial.load(name)
        if part.first_latent == 0:  # each pass over the corpus counts its tokens
            out["num_tokens"] += part.num_tokens
            out["num_windows"] += part.num_windows
            skipped += part.skipped
        mine = np.s_[:, part.first_latent : part.first_latent + part.num_latents]
        out["fire_count"][mine] += part.fire_count.T
        out["num_windows_firing"][mine] += part.num_windows_firing.T
        out["max_activation"][mine] = np.maximum(out["max_activation"][mine], part.max_activation.T)
        out["histogram"][mine] += part.histogram.transpose(1, 0, 2)
        high[mine], low[mine] = carried(high[mine] + part.sum_high.T, low[mine] + part.sum_low.T)
    out["sum_activation"][:] = as_float(high, low)
    return np.array(out["num_windows"]), skipped


def _save_exemplars(
    parts: Sequence[Path], latents: range, settings: ExtractionSettings, corpus: TokenCorpus, path: Path
) -> None:
    """Exemplars of a slice of latents, each group's by ascending key, with the text of each window once."""
    groups = range(latents.start * _NUM_SIDES, latents.stop * _NUM_SIDES)
    found = _kept_of_all(parts, groups, settings)
    # whatever order the shards came in, a key stands in one place
    order = np.lexsort((found.key, found.group))
    marks = _marks(found, len(groups), settings)
    order = order[marks[order] > 0]
    origin, found = marks[order], taken(found, order)
    windows, exemplar_window = np.unique(found.window, return_inverse=True)
    texts, previous = _with_previous(windows, settings)
    tokens, context, position = window_texts(texts, settings, corpus)
    counts = np.bincount(found.group, minlength=len(groups))
    save_file(
        {
            "group_start": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            "exemplar_window": np.searchsorted(texts, windows)[exemplar_window].astype(np.int32),
            "origin": origin,
            "row_length": found.row_length,
            "position": found.position,
            "value": found.value,
            "window_tokens": compact_tokens(tokens),
            "window_previous": previous,
            "window_context": context,
            "window_position": position,
            "window_document": np.asarray(corpus.context_document[context], dtype=np.int32),
        },
        path,
    )


def _kept_of_all(parts: Sequence[Path], groups: range, settings: ExtractionSettings) -> Firings:
    """The firings of some groups (counted from the first of them), with little more than what is kept in memory at once."""
    waiting: list[Firings] = []
    items = room = 0
    for path in parts:
        waiting.append(_of_groups(path, groups))
        waiting[-1].group[:] -= groups.start
        items += len(waiting[-1].group)
        if items > room:
            found = Firings.concatenate(waiting)
            # the order is total: what is in neither the top nor the sample now, nothing that comes later brings back
            waiting = [taken(found, np.flatnonzero(_marks(found, len(groups), settings)))]
            items = len(waiting[0].group)
            room = 2 * items
    return Firings.concatenate(waiting)


def _marks(found: Firings, num_groups: int, settings: ExtractionSettings) -> NDArray[np.uint8]:
    """[M] whether each is in its group's top, its sample or both; 0 for what is in neither."""
    order, starts = by_group(found.group, num_groups)
    marks = np.zeros(len(order), np.uint8)
    top, sampled = settings.top_exemplars, settings.sampled_exemplars
    choose(order, starts, found.key, found.peak, top, sampled, marks, new_groups(0), False)
    return marks


def _of_groups(path: Path, groups: range) -> Firings:
    """A copy of the part of a shard's firings that belongs to some groups; only that part is read."""
    firings = Partial.load(path).firings
    first, last = np.searchsorted(firings.group, [groups.start, groups.stop])
    lengths = firings.row_length
    start = int(lengths[:first].sum(dtype=np.int64))
    rows = slice(start, start + int(lengths[first:last].sum(dtype=np.int64)))
    items = slice(int(first), int(last))
    return Firings(
        group=firings.group[items].copy(),
        window=firings.window[items].copy(),
        key=firings.key[items].copy(),
        peak=firings.peak[items].copy(),
        row_length=firings.row_length[items].copy(),
        position=firings.position[rows].copy(),
        value=firings.value[rows].copy(),
    )


def _with_previous(
    windows: NDArray[np.int64], settings: ExtractionSettings
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """``windows`` (ascending) and those before them that a reader is shown, each once; and where each one's previous stands.

    Returns ``(windows [X], previous [X])``, -1 where there is none.
    """
    everything = windows
    for _ in range(-(-settings.context_tokens // settings.window_length)):
        before = everything - 1
        everything = np.union1d(everything, before[everything % settings.windows_per_context > 0])
    place = np.searchsorted(everything, everything - 1)
    there = (everything[place] == everything - 1) & (everything % settings.windows_per_context > 0)
    return everything, np.where(there, place, -1).astype(np.int32)


def window_texts(
    windows: NDArray[np.int64], settings: ExtractionSettings, corpus: TokenCorpus, before: int = 0
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """``(tokens [W, before + T], context [W], position [W])`` of windows by their ordinal, -1 where there is no token."""
    context, index = np.divmod(windows, settings.windows_per_context)
    position = index * settings.window_length
    columns = np.arange(-before, settings.window_length)[None, :] + position[:, None]
    start, end = np.asarray(corpus.context_start[context]), np.asarray(corpus.context_start[context + 1])
    place = start[:, None] + columns
    inside = (columns >= 0) & (place < end[:, None])
    tokens = np.where(inside, np.asarray(corpus.tokens[np.where(inside, place, 0)]).astype(np.int32), -1).astype(
        np.int32
    )
    return tokens, context.astype(np.int32), position.astype(np.int32)


def _save_pool(
    parts: Sequence[Path],
    side: Side,
    num_latents: int,
    settings: ExtractionSettings,
    corpus: TokenCorpus,
    folder: Path,
    sample: PoolSample | None,
) -> None:
    """The windows of a side with their activations latent by latent, dealt from one partial after the other."""
    per_context = settings.windows_per_context

    def rows_of(pool: PoolRows) -> NDArray[np.bool_]:
        mine: NDArray[np.bool_] = np.asarray(corpus.context_side[pool.window // per_context]) == side
        return mine if sample is None else mine & sample.holds_ordinals(corpus, pool.window)

    found, starts = [], np.zeros(num_latents + 1, np.int64)
    for path in parts:
        pool = Partial.load(path).pool
        mine = rows_of(pool)
        found.append(pool.window[mine])
        _count_latents(pool.latent, pool.row_length, mine, starts)
    windows = np.unique(np.concatenate(found))
    starts = np.cumsum(starts)
    tokens, context, position = window_texts(windows, settings, corpus, before=settings.context_tokens)
    before, total = settings.context_tokens, int(starts[-1])
    out = create(
        folder / f"pool-{side.name.lower()}.safetensors",
        {
            "tokens": (np.int32, tokens.shape),
            "first_token": (np.int32, (len(windows),)),
            "document": (np.int32, (len(windows),)),
            "context": (np.int32, (len(windows),)),
            "position": (np.int32, (len(windows),)),
            "latent_start": (np.int64, (num_latents + 1,)),
            "entry_window": (np.int32, (total,)),
            "entry_column": (np.uint8, (total,)),
            "entry_value": (np.float32, (total,)),
        },
    )
    out["tokens"][:] = tokens
    out["first_token"][:] = before + ((position == 0) & (corpus.bos_id is not None))
    out["document"][:] = corpus.context_document[context]
    out["context"][:], out["position"][:], out["latent_start"][:] = context, position, starts
    place = starts[:-1].copy()
    for path in parts:
        pool = Partial.load(path).pool
        rows = np.flatnonzero(rows_of(pool))
        # windows ascend in the order in which entries are dealt, so that each latent's come sorted
        rows = rows[np.argsort(pool.window[rows])]
        _deal(
            pool.latent,
            pool.position,
            pool.value,
            np.concatenate([[0], np.cumsum(pool.row_length, dtype=np.int64)]),
            rows,
            np.searchsorted(windows, pool.window[rows]).astype(np.int32),
            before,
            place,
            out["entry_window"],
            out["entry_column"],
            out["entry_value"],
        )


@compiled
def _count_latents(
    latent: NDArray[np.int32], row_length: NDArray[np.int32], mine: NDArray[np.bool_], counts: NDArray[np.int64]
) -> None:
    at = 0
    for row in range(len(row_length)):
        if mine[row]:
            for e in range(at, at + row_length[row]):
                counts[latent[e] + 1] += 1
        at += row_length[row]


@compiled
def _deal(
    latent: NDArray[np.int32],
    position: NDArray[np.uint8],
    value: NDArray[np.float32],
    entry_start: NDArray[np.int64],
    rows: NDArray[np.int64],
    windows: NDArray[np.int32],
    before: int,
    place: NDArray[np.int64],
    out_window: NDArray[np.int32],
    out_column: NDArray[np.uint8],
    out_value: NDArray[np.float32],
) -> None:
    """Put the entries of some rows where the next of their latent stands."""
    for i in range(len(rows)):
        for e in range(entry_start[rows[i]], entry_start[rows[i] + 1]):
            at = place[latent[e]]
            place[latent[e]] += 1
            out_window[at], out_column[at], out_value[at] = windows[i], position[e] + before, value[e]
