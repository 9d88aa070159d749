"""The labels of a source in little room: every worker process holds them, and there may be a million."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from itertools import chain

from autointerp.imports.label_line import ImportedLabel

_DENSE = 2**26
"""Latents below are found by an array, those from it on (no coder has them, but a file may say them) by a dict."""
_NONE = -1


class LabelIndex(Mapping[int, ImportedLabel]):
    """Labels by latent, ascending: texts in one buffer, and what many labels have in common once.

    A label takes sixteen bytes and its text, where an object with its own strings takes about 270.
    """

    def __init__(self) -> None:
        self._texts = bytearray()
        self._ends = array("q", [0])
        """Of row r the text is ``_texts[_ends[r]:_ends[r + 1]]``."""
        self._kinds = array("i")
        """Of each row the number of what it has beside the text."""
        self._known: dict[ImportedLabel, int] = {}
        self._shared: list[ImportedLabel] = []
        self._places = array("i")
        """Of each latent its row, -1 for none."""
        self._beyond: dict[int, int] = {}
        self._num = 0

    def put(self, latent: int, label: ImportedLabel) -> None:
        """Keep a label, in the place of one that was there."""
        shared = ImportedLabel(
            None if label.text is None else "",
            label.model,
            label.kind,
            label.author,
            label.reason,
            label.corpus,
            label.sides,
            label.seen,
        )
        kind = self._known.setdefault(shared, len(self._shared))
        if kind == len(self._shared):
            self._shared.append(shared)
        row = len(self._kinds)
        self._kinds.append(kind)
        self._texts += (label.text or "").encode()
        self._ends.append(len(self._texts))
        self._num += latent not in self
        if latent >= _DENSE:
            self._beyond[latent] = row
            return
        if latent >= len(self._places):
            size = min(max(latent + 1, len(self._places) * 5 // 4), _DENSE)
            self._places.extend(array("i", [_NONE]) * (size - len(self._places)))
        self._places[latent] = row

    def _row(self, latent: object) -> int:
        if not isinstance(latent, int) or latent < 0:
            return _NONE
        return self._places[latent] if latent < len(self._places) else self._beyond.get(latent, _NONE)

    def __contains__(self, latent: object) -> bool:
        return self._row(latent) != _NONE

    def __getitem__(self, latent: int) -> ImportedLabel:
        row = self._row(latent)
        if row == _NONE:
            raise KeyError(latent)
        shared = self._shared[self._kinds[row]]
        if shared.text is None:
            return shared
        text = self._texts[self._ends[row] : self._ends[row + 1]].decode()
        return ImportedLabel(
            text, shared.model, shared.kind, shared.author, shared.reason, shared.corpus, shared.sides, shared.seen
        )

    def __iter__(self) -> Iterator[int]:
        return chain((n for n, row in enumerate(self._places) if row != _NONE), sorted(self._beyond))

    def __len__(self) -> int:
        return self._num
