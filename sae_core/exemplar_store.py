"""The exemplar store of one source: immutable arrays and an index. Torch-free.

``merge_partials`` writes it once, after the last shard; LLM workers, the API and the UI only read it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_core.errors import StoreError
from sae_core.partial import ExtractionSettings
from sae_core.records import Exemplar, LatentStatistics, Origin, Side, Source, WindowPool
from sae_core.tensor_file import mapped
from sae_core.token_text import TokenText

FORMAT_VERSION = 2
_ORIGIN_BITS = {Origin.TOP: 1, Origin.SAMPLED: 2}
_SLICES = 64
"""Slices kept open, of about a megabyte each."""
_NO_TOKEN = 0xFFFF
"""Stands for -1 where tokens are kept in 16 bits."""


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

    @property
    def skipped(self) -> tuple[int, int]:
        """Contexts and tokens that were left out because activations were not finite."""
        return int(self._index["skipped_contexts"]), int(self._index["skipped_tokens"])

    @cached_property
    def statistics(self) -> LatentStatistics:
        return LatentStatistics(**mapped(self.folder / "statistics.safetensors"))

    @cached_property
    def _slice(self) -> Callable[[int], dict[str, Any]]:
        """The file of exemplars of one slice of latents by its number, mapped; the last ones are kept."""
        return lru_cache(maxsize=_SLICES)(self._read_slice)

    def _read_slice(self, number: int) -> dict[str, Any]:
        table = dict(mapped(self.folder / f"exemplars-{number:05d}.safetensors"))
        # where each group's entries begin; where each row's do would be ten times as much and more, for as long as the store is open
        entry_of_row = np.concatenate([[0], np.cumsum(table["row_length"], dtype=np.int64)])
        table["group_entry"] = entry_of_row[table["group_start"]]
        return table

    def exemplars(self, latent: int, side: Side, origin: Origin) -> list[Exemplar]:
        """Stored firing windows of one latent: TOP strongest first, SAMPLED in uniformly random order."""
        number, row_of_latent = divmod(latent, int(self._index["slice_latents"]))
        table = self._slice(number)
        group = row_of_latent * len(Side) + int(side)
        first, last = int(table["group_start"][group]), int(table["group_start"][group + 1])
        ends = int(table["group_entry"][group]) + np.cumsum(table["row_length"][first:last], dtype=np.int64)
        found = []
        for place in np.flatnonzero(table["origin"][first:last] & _ORIGIN_BITS[origin]):
            entries = slice(int(ends[place]) - int(table["row_length"][first + place]), int(ends[place]))
            found.append(self._exemplar(table, first + int(place), entries, latent, side, origin))
        if origin is Origin.TOP:
            # they stand by their keys, which are random
            found.sort(key=lambda exemplar: -abs(exemplar.max_activation))
        return found

    def _exemplar(
        self, table: dict[str, Any], row: int, entries: slice, latent: int, side: Side, origin: Origin
    ) -> Exemplar:
        window = int(table["exemplar_window"][row])
        text = self._texts(table, np.asarray([window]))[0]
        before, body = text[: self.settings.context_tokens], text[self.settings.context_tokens :]
        body = body[body >= 0]
        activations = np.zeros(len(body), dtype=np.float32)
        activations[table["position"][entries]] = table["value"][entries]
        return Exemplar(
            latent=latent,
            side=side,
            origin=origin,
            token_ids=body,
            activations=activations,
            context_ids=before[before >= 0],
            document=int(table["window_document"][window]),
            context=int(table["window_context"][window]),
            position=int(table["window_position"][window]),
        )

    def _texts(self, table: dict[str, Any], windows: NDArray[np.integer]) -> NDArray[np.int32]:
        """[W, P + T] windows with the tokens before them, which are windows of the table too."""
        blocks = [_tokens(table["window_tokens"][windows])]
        previous = windows
        wanted, length = self.settings.context_tokens, self.settings.window_length
        while (len(blocks) - 1) * length < wanted:
            previous = np.where(previous >= 0, table["window_previous"][previous], -1)
            blocks.insert(0, np.where(previous[:, None] >= 0, _tokens(table["window_tokens"][previous]), -1))
        return np.concatenate(blocks, axis=1)[:, -(wanted + length) :].astype(np.int32)

    def _exemplar_tokens(self, side: Side) -> NDArray[np.int32]:
        """[X, P + T] the windows of all exemplars of one side, those of a slice of latents each once."""
        found = []
        for number in range(-(-self.source.num_latents // int(self._index["slice_latents"]))):
            table = self._slice(number)
            group = np.repeat(np.arange(len(table["group_start"]) - 1), np.diff(table["group_start"]))
            windows = np.unique(table["exemplar_window"][group % len(Side) == int(side)])
            found.append(self._texts(table, windows))
        return np.concatenate(found)

    def pool_window(self, latent: int, side: Side, context: int, position: int) -> Exemplar | None:
        """One window of a side's pool with a latent's activations, silent or not; None where the pool does not hold it."""
        table = self._pool_tensors(side)
        rows = np.flatnonzero((table["context"] == context) & (table["position"] == position))
        if not len(rows):
            return None
        row, before = int(rows[0]), self.settings.context_tokens
        text = np.asarray(table["tokens"][row], dtype=np.int32)
        entries = slice(int(table["latent_start"][latent]), int(table["latent_start"][latent + 1]))
        mine = np.flatnonzero(table["entry_window"][entries] == row) + entries.start
        activations = np.zeros(len(text), dtype=np.float32)
        activations[table["entry_column"][mine]] = table["entry_value"][mine]
        kept = text[before:] >= 0
        return Exemplar(
            latent=latent,
            side=side,
            origin=Origin.SAMPLED,
            token_ids=text[before:][kept],
            activations=activations[before:][kept],
            context_ids=text[:before][text[:before] >= 0],
            document=int(table["document"][row]),
            context=context,
            position=position,
        )

    def _pool_tensors(self, side: Side) -> dict[str, Any]:
        cache = self.__dict__.setdefault("_pool_files", {})
        if side not in cache:
            cache[side] = mapped(self.folder / f"pool-{side.name.lower()}.safetensors")
        found: dict[str, Any] = cache[side]
        return found

    def pool(self, side: Side) -> WindowPool:
        """The uniformly drawn windows of one side."""
        cache = self.__dict__.setdefault("_pools", {})
        if side not in cache:
            tensors = self._pool_tensors(side)
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


def _tokens(stored: NDArray[np.integer]) -> NDArray[np.int32]:
    """Token ids as they are used, -1 for none."""
    tokens = stored.astype(np.int32)
    if stored.dtype == np.uint16:
        tokens[tokens == _NO_TOKEN] = -1
    return tokens


def compact_tokens(tokens: NDArray[np.int32]) -> NDArray[np.uint16] | NDArray[np.int32]:
    """Token ids (-1 for none) in 16 bits where they fit."""
    return tokens.astype(np.uint16) if tokens.max(initial=0) < _NO_TOKEN else tokens
