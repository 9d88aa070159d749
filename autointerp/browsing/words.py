"""Which rows have certain words in their labels: SQLite's full-text index, in a file of its own beside the columns."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+", re.UNICODE)
_MOST_WORDS = 16
"""Words of a question that are looked up; labels are short."""
_KEPT = 4
"""Answers that are kept: whoever pages through one asks it again, and one may be a million rows."""
_CONNECTIONS = 4
"""Questions at a time; others wait."""


class WordIndex:
    """Rows by the words of their texts. Threads may share one."""

    def __init__(self, path: Path) -> None:
        """Errors: sqlite3.Error."""
        # opened at once: the file may be replaced by that of another dictionary, and this one goes on with its own
        self._free: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[tuple[str, ...], int, int | None], NDArray[np.int64]] = OrderedDict()
        for _ in range(_CONNECTIONS):
            uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
            connection.execute("SELECT 1 FROM words WHERE words MATCH 'a' LIMIT 1")
            self._free.put(connection)

    @classmethod
    def build(cls, path: Path, texts: Iterable[tuple[int, str]]) -> None:
        """Write the index of ``(row, text)``. Several texts of one row are one text."""
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")  # the folder is put in place when it is whole
            # contentless: the texts stand beside it; a language model's labels are plain words, so no stemming
            connection.execute(
                "CREATE VIRTUAL TABLE words USING fts5(text, content='', columnsize=0, tokenize='unicode61 remove_diacritics 2')"
            )
            connection.executemany("INSERT INTO words (rowid, text) VALUES (? + 1, ?)", texts)
            connection.execute("INSERT INTO words (words) VALUES ('optimize')")
        connection.close()

    def find(self, question: str, *, after: int = -1, limit: int | None = None) -> NDArray[np.int64]:
        """[F] rows behind ``after`` that have all words of the question, ascending, at most ``limit`` of them; the last word may be the
        beginning of one. Empty without words.
        """
        words = _WORD.findall(question)[:_MOST_WORDS]
        if not words:
            return np.empty(0, np.int64)
        asked = (tuple(words), after, limit)
        with self._lock:
            if asked in self._found:
                self._found.move_to_end(asked)
                return self._found[asked]
        # quoted, so that nothing of it is an operator of the index
        match = " ".join(f'"{word}"' for word in words) + "*"
        # one text instead of a row each, which Python would make one by one
        connection = self._free.get()
        try:
            rows_of = "SELECT rowid FROM words WHERE words MATCH ? AND rowid > ? ORDER BY rowid LIMIT ?"
            query = f"SELECT group_concat(rowid) FROM ({rows_of})"
            (found,) = connection.execute(query, (match, after + 1, -1 if limit is None else limit)).fetchone()
        finally:
            self._free.put(connection)
        rows = np.fromstring(found, dtype=np.int64, sep=",") - 1 if found else np.empty(0, np.int64)
        rows.sort()
        rows.flags.writeable = False
        with self._lock:
            self._found[asked] = rows
            while len(self._found) > _KEPT:
                self._found.popitem(last=False)
        return rows
