"""A dictionary as one mapped array a column. R rows, in the order of sources and latents.

A table of a million latents with forty figures has no index for every order in which somebody may want it, and each index of a
database would be as large as the column. A column in memory is compared with a bound, or partitioned at its fiftieth value, in one
pass; so there are no indices, and any sort goes with any filter. The files are mapped: processes share them, and
what nobody asks for is not in memory.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from autointerp.browsing.words import WordIndex
from sae_core.errors import StoreError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "autointerp columns"
VERSION = 2
OUTLINE_NAME = "columns.json"
TEXTS_NAME = "texts.arrow"
WORDS_NAME = "words.db"


class SourceRows(BaseModel):
    """The rows of one source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    first: int
    end: int
    """One behind the last."""


class Outline(BaseModel):
    """What stands in ``columns.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = FORMAT
    version: int = VERSION
    made_of: str
    """sha256 of the dictionary's manifest."""
    num_rows: int
    sources: tuple[SourceRows, ...]
    numbers: tuple[str, ...]
    """Columns of figures and counts that are not null everywhere, in the dictionary's order."""
    categories: Mapping[str, tuple[str, ...]]
    """Columns with few texts, and these; the code of a row is its place, plus one (0 is null)."""
    texts: tuple[str, ...]


class DictionaryColumns:
    """The columns in a folder. Threads may share one; when the folder makes room for another dictionary's, it goes on with its own."""

    def __init__(self, folder: Path) -> None:
        """Errors: StoreError where the folder is none, or of another version."""
        try:
            data = json.loads((folder / OUTLINE_NAME).read_text(encoding="utf-8"))
            if (data.get("format"), data.get("version")) != (FORMAT, VERSION):
                raise StoreError(f"{folder} was made by another version: remove it, and it is made anew.")
            self.outline = Outline.model_validate(data)
        except (OSError, ValueError, ValidationError) as error:
            raise StoreError(f"{folder} holds no columns of a dictionary: remove it, and it is made anew.") from error
        self.folder = folder
        names = ("latent", *self.outline.numbers, *self.outline.categories)
        try:
            self._mapped = {name: self._load(name) for name in names}
            self.words = WordIndex(folder / WORDS_NAME)
            """Finds rows by the words of their labels."""
            self._texts = _mapped_table(folder / TEXTS_NAME)
        except (OSError, ValueError, sqlite3.Error) as error:
            raise StoreError(
                f"{folder} holds only some columns of a dictionary: remove it, and it is made anew."
            ) from error

    def _load(self, name: str) -> NDArray[Any]:
        # nothing of no length can be mapped
        found: NDArray[Any] = np.load(
            self.folder / f"{name}.npy", "r" if self.outline.num_rows else None, allow_pickle=False
        )
        return found

    @property
    def num_rows(self) -> int:
        """R."""
        return self.outline.num_rows

    @property
    def latents(self) -> NDArray[np.int64]:
        """[R]"""
        found: NDArray[np.int64] = self._mapped["latent"]
        return found

    def numbers(self, name: str) -> NDArray[np.float64]:
        """[R] a figure, NaN where it is null. Errors: UnknownNameError."""
        if name not in self.outline.numbers:
            raise UnknownNameError(
                f"the dictionary has no figure {name!r}: {did_you_mean(name, list(self.outline.numbers))}"
            )
        found: NDArray[np.float64] = self._mapped[name]
        return found

    def codes(self, name: str) -> NDArray[np.uint16]:
        """[R] codes of a column with few texts, see ``Outline.categories``. Errors: UnknownNameError."""
        if name not in self.outline.categories:
            raise UnknownNameError(
                f"the dictionary has no column {name!r} of few texts: {did_you_mean(name, list(self.outline.categories))}"
            )
        found: NDArray[np.uint16] = self._mapped[name]
        return found

    def source_rows(self, source: str) -> SourceRows:
        """Errors: UnknownNameError."""
        for rows in self.outline.sources:
            if rows.name == source:
                return rows
        names = [rows.name for rows in self.outline.sources]
        raise UnknownNameError(f"there is no source {source!r}: {did_you_mean(source, names)}")

    def row_of(self, source: str, latent: int) -> int | None:
        """The row of a latent, None where the dictionary has none. Errors: UnknownNameError for the source."""
        rows = self.source_rows(source)
        row = rows.first + int(np.searchsorted(self.latents[rows.first : rows.end], latent))
        return row if row < rows.end and self.latents[row] == latent else None

    def source_of(self, row: int) -> str:
        """Name of a row's source."""
        return next(rows.name for rows in self.outline.sources if rows.first <= row < rows.end)

    def rows(self, numbers: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Everything that is kept of some rows: figures, few texts and texts; what is null is left out."""
        found: list[dict[str, Any]] = [
            {"source": self.source_of(int(row)), "latent": int(self.latents[row])} for row in numbers
        ]
        for name, values in self.outline.categories.items():
            for row, code in zip(found, self.codes(name)[numbers].tolist(), strict=True):
                if code:
                    row[name] = values[code - 1]
        for name in self.outline.numbers:
            for row, value in zip(found, self.numbers(name)[numbers].tolist(), strict=True):
                if value == value:  # NaN is null
                    row[name] = value
        texts = self._texts.take(numbers)
        for name in self.outline.texts:
            for row, text in zip(found, texts.column(name).to_pylist(), strict=True):
                if text is not None:
                    row[name] = text
        return found


def _mapped_table(path: Path) -> pa.Table:
    import pyarrow as pa

    with pa.memory_map(str(path)) as mapped:
        return pa.ipc.open_file(mapped).read_all()
