"""The token corpus: contexts as arrays on disk, mapped when it is done or while it grows. Torch-free."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_core.corpus_writer import ARRAYS, CORPUS, JOURNAL, array_file
from sae_core.errors import CorpusError

FORMAT_VERSION = 2


class StoredTokens:
    """Token ids on disk in a narrow number format, given as int32."""

    def __init__(self, stored: NDArray[Any]) -> None:
        self._stored = stored

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: Any) -> NDArray[np.int32]:
        return np.asarray(self._stored[index]).astype(np.int32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self._stored).astype(np.int32 if dtype is None else dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """[num stored tokens]."""
        return self._stored.shape


@dataclass(frozen=True)
class TokenCorpus:
    """A corpus on disk. C contexts, M documents."""

    folder: Path
    tokens: NDArray[np.int32] | StoredTokens
    """[num stored tokens] flat, the contexts one after the other; what is taken of it by index is int32."""
    context_start: NDArray[np.int64]
    """[C + 1] context c is ``tokens[context_start[c]:context_start[c + 1]]``."""
    context_document: NDArray[np.int32]
    """[C] ordinal of its document; of a packed context, that in which its first token of text stands."""
    context_side: NDArray[np.uint8]
    """[C] its side."""
    context_uid: NDArray[np.uint64]
    """[C] hash of (document's digest, place in the document): the context's identity wherever it is read."""
    num_documents: int
    num_tokens: int
    """Tokens of text, BOS and packing's EOS not counted."""
    fingerprint: str
    """sha256 over the documents' digests, the tokenizer and the cut; "" while the corpus grows."""
    bos_id: int | None

    @property
    def num_contexts(self) -> int:
        return len(self.context_document)

    @property
    def finished(self) -> bool:
        """Whether this is the whole corpus."""
        return self.fingerprint != ""

    @property
    def num_body_tokens(self) -> int:
        """Tokens of all contexts, their BOS not counted."""
        return int(self.context_start[-1]) - self.num_contexts * (self.bos_id is not None)

    def body_start(self) -> NDArray[np.int64]:
        """[C + 1] tokens before each context, BOS not counted."""
        start = np.asarray(self.context_start)
        return start if self.bos_id is None else start - np.arange(len(start))

    def digest(self, contexts: range) -> str:
        """blake2b of the place, the tokens, the sides and the identities of some contexts."""
        start = np.asarray(self.context_start[contexts.start : contexts.stop + 1])
        stretch = slice(contexts.start, contexts.stop)
        parts = (
            start,
            self.tokens[int(start[0]) : int(start[-1])],
            *(np.asarray(array[stretch]) for array in (self.context_document, self.context_side, self.context_uid)),
        )
        found = hashlib.blake2b(repr(contexts).encode(), digest_size=16)
        for part in parts:
            found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()

    def context(self, ordinal: int) -> NDArray[np.int32]:
        """Token ids of one context, BOS included."""
        return self.tokens[self.context_start[ordinal] : self.context_start[ordinal + 1]]

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a finished corpus lies in ``folder``."""
        return (folder / CORPUS).is_file()

    @staticmethod
    def open(folder: Path) -> TokenCorpus:
        """Map the corpus that :func:`sae_core.tokens.build_corpus` left in ``folder``. Raises CorpusError for one of another version."""
        return _mapped(folder, CORPUS)

    @staticmethod
    def open_growing(folder: Path) -> TokenCorpus | None:
        """Map what :func:`sae_core.tokens.build_corpus` has written so far, or all of it where it is done; None before its first word.

        The contexts that are there stay as they are. Raises CorpusError for a corpus of another version.
        """
        for name in (CORPUS, JOURNAL):
            try:
                return _mapped(folder, name)
            except CorpusError:
                raise
            except (FileNotFoundError, ValueError):
                # no word yet; or one of a corpus that is being begun anew, whose arrays are gone or shorter by now
                continue
        return None


def _mapped(folder: Path, name: str) -> TokenCorpus:
    told = json.loads((folder / name).read_text(encoding="utf-8"))
    if told["format_version"] != FORMAT_VERSION:
        raise CorpusError(
            f"{folder} holds a corpus of format {told['format_version']}, this version reads {FORMAT_VERSION}: delete it."
        )

    def array(name: str, number_format: str, length: int) -> NDArray[Any]:
        return np.memmap(folder / array_file(name), dtype=number_format, mode="r", shape=(length,))

    contexts = told["num_contexts"]
    arrays = {n: array(n, f, contexts + (n == "context_start")) for n, f in ARRAYS.items()}
    return TokenCorpus(
        folder=folder,
        tokens=StoredTokens(array("tokens", told["token_format"], told["num_stored"])),
        **arrays,
        num_documents=told["num_documents"],
        num_tokens=told["num_tokens"],
        fingerprint=told.get("fingerprint", ""),
        bos_id=told["bos_id"],
    )
