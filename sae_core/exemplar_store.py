"""The exemplar store of one source: immutable arrays and an index. Torch-free.

``merge_partials`` writes it once, after the last shard; LLM workers, the API and the UI only read it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from sae_core.errors import StoreError
from sae_core.partial import ExtractionSettings, Partial
from sae_core.records import HISTOGRAM_EDGES, Exemplar, LatentStatistics, Origin, Side, Source, WindowPool
from sae_core.reservoir import Firings, PoolRows
from sae_core.token_text import TokenText
from sae_core.tokens import TokenCorpus

FORMAT_VERSION = 1
_ORIGINS = (Origin.TOP, Origin.SAMPLED)


class ExemplarStore:
    """Reads a store. Everything is loaded when first asked for."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder = folder
        self._index = index
        self.source = Source(**index["source"])
        self.settings = ExtractionSettings(**index["settings"])
        self.corpus_fingerprint = str(index["corpus_fingerprint"])

    @staticmethod
    def open(folder: Path) -> ExemplarStore:
        """Raises StoreError where there is no finished store."""
        path = folder / "index.json"
        if not path.is_file():
            raise StoreError(
                f"{folder} holds no exemplar store: the extraction has not ended; run it again with the same --out."
            )
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format_version"] != FORMAT_VERSION:
            raise StoreError(
                f"{folder} is an exemplar store of format {index['format_version']}, this version reads {FORMAT_VERSION}."
            )
        return ExemplarStore(folder, index)

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"

    @cached_property
    def pieces(self) -> TokenText:
        """Token ids as readable text."""
        return TokenText.from_file(self.tokenizer_path)

    @cached_property
    def statistics(self) -> LatentStatistics:
        return LatentStatistics(**load_file(self.folder / "statistics.safetensors"))

    @cached_property
    def _exemplars(self) -> dict[str, NDArray[np.generic]]:
        tensors: dict[str, NDArray[np.generic]] = load_file(self.folder / "exemplars.safetensors")
        return tensors

    def exemplars(self, latent: int, side: Side, origin: Origin) -> list[Exemplar]:
        """Stored firing windows of one latent: TOP strongest first, SAMPLED in uniformly random order."""
        table = self._exemplars
        cell = (_ORIGINS.index(origin) * 3 + int(side)) * self.source.num_latents + latent
        out: list[Exemplar] = []
        for row in range(int(table["group_start"][cell]), int(table["group_start"][cell + 1])):
            window = int(table["exemplar_window"][row])
            entries = slice(int(table["row_start"][row]), int(table["row_start"][row + 1]))
            text = table["window_tokens"][window]
            body = text[self.settings.context_tokens :]
            body = body[body >= 0]
            before = text[: self.settings.context_tokens]
            activations = np.zeros(len(body), dtype=np.float32)
            activations[table["position"][entries]] = table["value"][entries]
            out.append(
                Exemplar(
                    latent=latent,
                    side=side,
                    origin=origin,
                    token_ids=body.astype(np.int32),
                    activations=activations,
                    context_ids=before[before >= 0].astype(np.int32),
                    document=int(table["window_document"][window]),
                    context=int(table["window_context"][window]),
                    position=int(table["window_position"][window]),
                )
            )
        return out

    def _exemplar_tokens(self, side: Side) -> NDArray[np.int32]:
        """[X, P + T] the windows of all exemplars of one side, each once."""
        table, num_latents = self._exemplars, self.source.num_latents
        windows = []
        for origin in range(len(_ORIGINS)):
            first = (origin * 3 + int(side)) * num_latents
            rows = slice(int(table["group_start"][first]), int(table["group_start"][first + num_latents]))
            windows.append(table["exemplar_window"][rows])
        tokens: NDArray[np.int32] = table["window_tokens"][np.unique(np.concatenate(windows))]
        return tokens

    def pool(self, side: Side) -> WindowPool:
        """The uniformly drawn windows of one side."""
        cache = self.__dict__.setdefault("_pools", {})
        if side not in cache:
            tensors = load_file(self.folder / f"pool-{side.name.lower()}.safetensors")
            sizes: Sequence[int] = self._index["windows_of_side"]
            is_census = len(tensors["tokens"]) == sizes[side]
            cache[side] = WindowPool(
                side=side,
                num_windows_side=sizes[side],
                context_tokens=self.settings.context_tokens,
                exemplar_tokens=None if is_census else self._exemplar_tokens(side),
                **tensors,
            )
        pool: WindowPool = cache[side]
        return pool


def merge_partials(
    partials: Sequence[Path], source: Source, settings: ExtractionSettings, corpus: TokenCorpus, folder: Path
) -> ExemplarStore:
    """Add up the shards' partials, in the given order, into the store at ``folder`` (replaced if it is there).

    The folder appears in one rename, complete.
    """
    whole = Partial.load(partials[0], source.num_latents, settings)
    for path in partials[1:]:
        whole.absorb(Partial.load(path, source.num_latents, settings))
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    shape = (3, source.num_latents)
    save_file(
        {
            "num_tokens": whole.num_tokens,
            "num_windows": whole.num_windows,
            "fire_count": whole.fire_count.reshape(shape),
            "num_windows_firing": whole.num_windows_firing.reshape(shape),
            "max_activation": whole.max_activation.reshape(shape),
            "sum_activation": whole.sum_activation.reshape(shape),
            "histogram": whole.histogram.reshape(*shape, len(HISTOGRAM_EDGES) + 1),
        },
        temporary / "statistics.safetensors",
    )
    _save_exemplars([whole.top.result(), whole.sampled.result()], source.num_latents, settings, corpus, temporary)
    for side in Side:
        _save_pool(whole.pools[side].result(), side, source.num_latents, settings, corpus, temporary)
    shutil.copyfile(corpus.folder / "tokenizer.json", temporary / "tokenizer.json")
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(temporary.iterdir())}
    index = {
        "format_version": FORMAT_VERSION,
        "source": asdict(source),
        "settings": asdict(settings),
        "corpus_fingerprint": corpus.fingerprint,
        "windows_of_side": whole.num_windows.tolist(),
        "sha256": files,
    }
    (temporary / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return ExemplarStore.open(folder)


def _window_table(
    windows: NDArray[np.int64], settings: ExtractionSettings, corpus: TokenCorpus
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """``(tokens [W, P + T], context [W], position [W])`` of windows by their ordinal."""
    context, index = np.divmod(windows, settings.windows_per_context)
    position = index * settings.window_length
    columns = np.arange(-settings.context_tokens, settings.window_length)[None, :] + position[:, None]
    start, end = corpus.context_start[context], corpus.context_start[context + 1]
    place = start[:, None] + columns
    inside = (columns >= 0) & (place < end[:, None])
    tokens = np.where(inside, corpus.tokens[np.where(inside, place, 0)], -1).astype(np.int32)
    return tokens, context.astype(np.int32), position.astype(np.int32)


def _save_exemplars(
    samples: list[Firings], num_latents: int, settings: ExtractionSettings, corpus: TokenCorpus, folder: Path
) -> None:
    groups = np.concatenate([s.group + 3 * num_latents * origin for origin, s in enumerate(samples)])
    everything = Firings.concatenate(samples)
    windows, exemplar_window = np.unique(everything.window, return_inverse=True)
    tokens, context, position = _window_table(windows, settings, corpus)
    counts = np.bincount(groups, minlength=2 * 3 * num_latents)
    save_file(
        {
            "group_start": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            "exemplar_window": exemplar_window.astype(np.int32),
            "row_start": np.concatenate([[0], np.cumsum(everything.row_length)]).astype(np.int64),
            "position": everything.position,
            "value": everything.value,
            "window_tokens": tokens,
            "window_context": context,
            "window_position": position,
            "window_document": np.asarray(corpus.context_document[context], dtype=np.int32),
        },
        folder / "exemplars.safetensors",
    )


def _save_pool(
    rows: PoolRows, side: Side, num_latents: int, settings: ExtractionSettings, corpus: TokenCorpus, folder: Path
) -> None:
    tokens, context, position = _window_table(rows.window, settings, corpus)
    before = settings.context_tokens
    starts_with_bos = (position == 0) & (corpus.bos_id is not None)
    window = np.repeat(np.arange(len(rows.window), dtype=np.int32), rows.row_length)
    order = np.lexsort((rows.position, window, rows.latent))
    save_file(
        {
            "tokens": tokens,
            "first_token": (before + starts_with_bos).astype(np.int32),
            "document": np.asarray(corpus.context_document[context], dtype=np.int32),
            "context": context,
            "position": position,
            "latent_start": np.concatenate([[0], np.cumsum(np.bincount(rows.latent, minlength=num_latents))]).astype(
                np.int64
            ),
            "entry_window": window[order],
            "entry_column": (rows.position[order].astype(np.int64) + before).astype(np.uint8),
            "entry_value": rows.value[order],
        },
        folder / f"pool-{side.name.lower()}.safetensors",
    )
