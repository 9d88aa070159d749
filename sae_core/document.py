"""A document: a text, the token ids of one, or a conversation. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One document and where it came from; ``ids`` or ``messages`` stand in the place of ``text`` where they are given."""

    name: str
    """File relative to the corpus, with ``:row`` for a row of a table."""
    text: str = ""
    known: bool = True
    """False where the text's documents are not known (a lone .txt): then each context is a document of its own."""
    ids: NDArray[np.int64] | None = None
    """[tokens] of a document that comes as token ids."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    """Of a conversation: ``role``, ``content`` and what else the chat template reads."""

    @property
    def digest(self) -> int:
        """Signed 64-bit digest of what the document holds: its identity, on whichever machine it is read."""
        return int.from_bytes(hashlib.blake2b(self._content(), digest_size=8).digest(), "big", signed=True)

    def _content(self) -> bytes:
        if self.ids is not None:
            return self.ids.astype("<i8").tobytes()
        if self.messages is not None:
            return json.dumps(self.messages, sort_keys=True, default=str).encode()
        return self.text.encode("utf-8", "surrogatepass")

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it but white space."""
        if self.ids is not None:
            return not len(self.ids)
        if self.messages is not None:
            return not self.messages
        return not self.text.strip()
