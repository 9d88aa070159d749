"""Which field of a row makes a document, and the document that its value makes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from sae_core.document import Document
from sae_core.errors import CorpusError

FieldKind = Literal["text", "tokens", "messages"]
HOLDS: dict[FieldKind, str] = {
    "text": "text",
    "tokens": "a list of token ids",
    "messages": "a list of messages",
}


class Field(NamedTuple):
    """A field of a .jsonl row, or a column of a table."""

    kind: FieldKind
    name: str

    @property
    def setting(self) -> str:
        """The setting that names it."""
        return f"corpus.{self.kind}_field"

    def missing(self, place: str, names: Iterable[str]) -> CorpusError:
        """The error where a row or table has no such field but has ``names``."""
        return CorpusError(
            f"{place} has no {self._short} under {self.name!r} (it has {', '.join(map(repr, names)) or 'nothing'}): "
            f"set {self.setting}."
        )

    @property
    def _short(self) -> str:
        return {"text": "text", "tokens": "token ids", "messages": "messages"}[self.kind]

    def document(self, value: Any, name: str, place: str) -> Document:
        """The document of a row's value. Raises CorpusError where the value is of another kind."""
        if self.kind == "text" and isinstance(value, str):
            return Document(name, value)
        if self.kind == "tokens" and isinstance(value, list) and all(type(i) is int for i in value):
            try:
                return Document(name, ids=np.asarray(value, dtype=np.int64))
            except OverflowError:
                pass
        if self.kind == "messages" and isinstance(value, list) and all(isinstance(m, dict) for m in value):
            messages = tuple({k: v for k, v in message.items() if v is not None or k == "content"} for message in value)
            for message in messages:
                if not isinstance(message.get("role"), str) or "content" not in message:
                    raise CorpusError(
                        f"{place}: a message under {self.name!r} has {', '.join(map(repr, message)) or 'nothing'}, where "
                        "'role' and 'content' are read: rename its fields."
                    )
            return Document(name, messages=messages)
        raise CorpusError(
            f"{place}: {self.name!r} holds {_named(value)}, not {HOLDS[self.kind]}: set {self.setting} to a field that does."
        )


def _named(value: Any) -> str:
    names: dict[type, str] = {type(None): "nothing", str: "text", dict: "an object", list: "a list of something else"}
    return names.get(type(value), f"a value of type {type(value).__name__}")
