"""Writes a token corpus as arrays that grow at their ends, and says now and then how far they reach."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

ARRAYS: Mapping[str, str] = {
    "context_start": "<i8",
    "context_document": "<i4",
    "context_side": "|u1",
    "context_uid": "<u8",
}
"""Number format of each array beside the tokens, on disk as ``<name>.bin``."""
CORPUS, JOURNAL, TOKENIZER = "corpus.json", "journal.json", "tokenizer.json"
JOURNAL_TOKENS = 131_072
"""Tokens between two words of the journal."""


def array_file(name: str) -> str:
    """The file of an array."""
    return f"{name}.bin"


def token_format(vocabulary: int) -> str:
    """The narrowest number format on disk for ids below ``vocabulary``."""
    return "<u2" if vocabulary <= 1 << 16 else "<i4"


class CorpusWriter:
    """The files of a corpus in the making. What ``journal.json`` counts can be read while more is being written."""

    def __init__(self, folder: Path, token_format: str, facts: Mapping[str, Any]) -> None:
        """Begin anew in ``folder``; ``facts`` is what the journal and ``corpus.json`` say of it beside the counts."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._facts = {**facts, "token_format": token_format}
        self._formats = {"tokens": token_format, **ARRAYS}
        for name in (CORPUS, JOURNAL, TOKENIZER, *map(array_file, self._formats)):
            # not overwritten in place: another folder may have the same file by a hard link
            (folder / name).unlink(missing_ok=True)
        self._files: dict[str, BinaryIO] = {n: (folder / array_file(n)).open("wb") for n in self._formats}
        self._sums = {name: hashlib.blake2b(digest_size=16) for name in self._formats}
        self.num_contexts = 0
        self.num_stored = 0
        """Tokens in the files, BOS and EOS counted."""
        self._told = 0
        self._append("context_start", np.zeros(1, dtype=np.int64))

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def add(
        self,
        tokens: NDArray[np.int32],
        lengths: NDArray[np.int64],
        document: NDArray[np.int64],
        side: NDArray[np.uint8],
        uid: NDArray[np.uint64],
    ) -> None:
        """Append n contexts: ``tokens`` one after the other, and [n] of the rest."""
        self._append("tokens", tokens)
        self._append("context_start", self.num_stored + np.cumsum(lengths))
        self._append("context_document", document)
        self._append("context_side", side)
        self._append("context_uid", uid)
        self.num_contexts += len(lengths)
        self.num_stored += len(tokens)

    def tell(self, num_documents: int, num_tokens: int) -> None:
        """Let the journal speak of all that has been added, if that is much more than it speaks of."""
        if self.num_stored - self._told >= JOURNAL_TOKENS:
            self._flush()
            self._write(JOURNAL, self._counts(num_documents, num_tokens))
            self._told = self.num_stored

    def finish(self, num_documents: int, num_tokens: int, fingerprint: str) -> None:
        """Write ``corpus.json``, last of all: with it the corpus is whole. The tokenizer must lie there by then."""
        self._flush()
        files = {
            array_file(name): {"bytes": file.tell(), "blake2b": self._sums[name].hexdigest()}
            for name, file in self._files.items()
        }
        tokenizer = (self._folder / TOKENIZER).read_bytes()
        files[TOKENIZER] = {"bytes": len(tokenizer), "blake2b": hashlib.blake2b(tokenizer, digest_size=16).hexdigest()}
        counts = self._counts(num_documents, num_tokens)
        self._write(JOURNAL, counts)
        self._write(CORPUS, {**counts, "fingerprint": fingerprint, "files": files})

    def _append(self, name: str, values: NDArray[Any]) -> None:
        content = values.astype(self._formats[name]).tobytes()
        self._files[name].write(content)
        self._sums[name].update(content)

    def _counts(self, num_documents: int, num_tokens: int) -> dict[str, Any]:
        return {
            **self._facts,
            "num_contexts": self.num_contexts,
            "num_stored": self.num_stored,
            "num_documents": num_documents,
            "num_tokens": num_tokens,
        }

    def _flush(self) -> None:
        for file in self._files.values():
            file.flush()

    def _write(self, name: str, value: object) -> None:
        temporary = self._folder / f"{name}.tmp"
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self._folder / name)
