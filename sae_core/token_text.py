"""Readable text of token ids, from a ``tokenizer.json`` alone. Torch-free, and free of ``transformers``.

Every token is kept as the bytes it stands for, so that a character whose bytes are split over several tokens is
shown whole, at the token that starts it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sae_core.errors import InputError, MissingFileError

_SPACES = re.compile(" {2,}")
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_CONTROL = {"\n": "⏎", "\t": "→", "\r": "␍", "\f": "␌", "\v": "␋", "\u00a0": "⍽"}


@dataclass(frozen=True)
class TokenText:
    """Text of token ids: exact (:meth:`text`, :meth:`pieces`) or with visible whitespace (:meth:`visible`)."""

    token_bytes: tuple[bytes, ...]
    """The UTF-8 bytes of each token id; a single token's need not be whole characters."""
    special: frozenset[int] = frozenset()
    """Ids of special tokens (BOS, EOS, padding)."""

    @classmethod
    def from_file(cls, path: Path | str) -> TokenText:
        """Reads a ``tokenizer.json``.

        Raises:
            MissingFileError: there is no such file.
            InputError: the file is not a tokenizer of the ``tokenizers`` library.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFileError(f"no tokenizer at {path}: give a tokenizer.json of the tokenizers library")
        text = path.read_text(encoding="utf-8")
        try:
            layout = json.loads(text)
            tokenizer = Tokenizer.from_str(text)
        # The library raises bare Exception for every file that it cannot read.
        except Exception as error:
            raise InputError(f"{path} is not a tokenizer.json of the tokenizers library: {error}") from error
        added = {int(entry["id"]): entry for entry in layout.get("added_tokens") or []}
        spelling = _spelling(layout)
        size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        table: list[bytes] = []
        for token_id in range(size):
            token = tokenizer.id_to_token(token_id)
            if token is None:
                table.append(f"<{token_id}>".encode())
            elif token_id in added:
                table.append(token.encode())
            else:
                table.append(spelling(token))
        return cls(tuple(table), frozenset(i for i, entry in added.items() if entry.get("special")))

    @property
    def vocab_size(self) -> int:
        """Ids that the tokenizer knows; a subject may have more rows than that."""
        return len(self.token_bytes)

    def bytes_of(self, token_id: int) -> bytes:
        """Bytes of one token; ``<id>`` for a row of the subject that the tokenizer does not know."""
        if 0 <= token_id < len(self.token_bytes):
            return self.token_bytes[token_id]
        return f"<{token_id}>".encode()

    def piece(self, token_id: int) -> str:
        """Text of one token alone; bytes that are no whole character are written ``\\xe2``."""
        return self.bytes_of(int(token_id)).decode("utf-8", errors="backslashreplace")

    def text(self, token_ids: Iterable[int]) -> str:
        """Text of a run of tokens, special tokens included."""
        return b"".join(self.bytes_of(int(i)) for i in token_ids).decode("utf-8", errors="replace")

    def pieces(self, token_ids: Iterable[int]) -> list[str]:
        """One text a token, joined equal to :meth:`text` where all bytes are valid.

        A character that is split over tokens stands whole at the token that holds its first byte, the others of it
        give ``""``. Bytes that belong to no character are written ``\\xe2``.
        """
        parts = [self.bytes_of(int(i)) for i in token_ids]
        joined = b"".join(parts)
        pieces: list[str] = []
        begin = done = 0
        for part in parts:
            end = begin + len(part)
            cut = _character_end(joined, end) if done < end else done
            pieces.append(joined[done:cut].decode("utf-8", errors="backslashreplace"))
            done, begin = cut, end
        return pieces

    def visible_pieces(self, token_ids: Iterable[int]) -> list[str]:
        """:meth:`pieces` with visible whitespace (:func:`show_whitespace`)."""
        ids = [int(token) for token in token_ids]
        known = self._visible
        # nearly all tokens are whole characters, whatever stands beside them
        found = [known[token] if 0 <= token < len(known) else None for token in ids]
        if None not in found:
            return found  # type: ignore[return-value]
        return [show_whitespace(piece) for piece in self.pieces(ids)]

    @cached_property
    def _visible(self) -> list[str | None]:
        """[vocab_size] visible text of each token; None where its bytes alone are no whole characters."""
        found: list[str | None] = []
        for data in self.token_bytes:
            try:
                found.append(show_whitespace.__wrapped__(data.decode("utf-8")))
            except UnicodeDecodeError:
                found.append(None)
        return found

    def visible(self, token_ids: int | Sequence[int]) -> str:
        """Text for a label: newline ``⏎``, tab ``→``, n > 1 spaces ``␣ₙ``, an edge space before no letter ``␣``."""
        text = self.piece(token_ids) if isinstance(token_ids, int) else self.text(token_ids)
        return show_whitespace(text)


@lru_cache(2**16)  # pages show the same tokens again and again
def show_whitespace(text: str) -> str:
    """``text`` on one line with its whitespace visible; single spaces between or before other characters stay."""
    if text == " ":
        return "␣"
    text = _SPACES.sub(lambda run: "␣" + str(len(run.group())).translate(_SUBSCRIPTS), text)
    text = "".join(_CONTROL.get(c, c if c.isprintable() else f"\\x{ord(c):02x}") for c in text)
    return text[:-1] + "␣" if text.endswith(" ") else text


def _character_end(data: bytes, at: int) -> int:
    """First character boundary of UTF-8 ``data`` at or after ``at``; ``at`` itself where the bytes are not UTF-8."""
    for lead in range(at - 1, max(at - 4, -1), -1):
        byte = data[lead]
        if byte & 0xC0 == 0x80:
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        end = lead + length
        if end <= at or end > len(data):
            return at
        try:
            data[lead:end].decode("utf-8")
        except UnicodeDecodeError:
            return at
        return end
    return at


class _ByteLevelSpelling:
    """GPT-2's byte-level alphabet: every byte has a printable character of its own."""

    def __init__(self) -> None:
        plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        others = [byte for byte in range(256) if byte not in plain]
        self.byte_of = {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}

    def __call__(self, token: str) -> bytes:
        out = bytearray()
        for character in token:
            byte = self.byte_of.get(character)
            out += character.encode() if byte is None else bytes([byte])
        return bytes(out)


class _MetaspaceSpelling:
    """SentencePiece's: a low line stands for a space, ``<0x0A>`` for one byte."""

    byte_token = re.compile(r"<0x([0-9A-Fa-f]{2})>")

    def __call__(self, token: str) -> bytes:
        match = self.byte_token.fullmatch(token)
        return bytes([int(match.group(1), 16)]) if match else token.replace("▁", " ").encode()


class _WordPieceSpelling:
    """BERT's: a piece that continues a word is marked, one that starts a word is not."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def __call__(self, token: str) -> bytes:
        return (token.removeprefix(self.prefix) if token.startswith(self.prefix) else " " + token).encode()


def _types(node: Any) -> set[str]:
    """All ``type`` names in one part of a tokenizer's layout."""
    if isinstance(node, dict):
        own = {node["type"]} if isinstance(node.get("type"), str) else set()
        return own.union(*(_types(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(_types(value) for value in node))
    return set()


def _spelling(layout: dict[str, Any]) -> _ByteLevelSpelling | _MetaspaceSpelling | _WordPieceSpelling:
    """How this tokenizer's vocabulary writes bytes."""
    parts = _types(layout.get("decoder")) | _types(layout.get("pre_tokenizer"))
    if "ByteLevel" in parts:
        return _ByteLevelSpelling()
    model = layout.get("model") or {}
    if "WordPiece" in parts or model.get("type") == "WordPiece":
        return _WordPieceSpelling(str(model.get("continuing_subword_prefix") or "##"))
    return _MetaspaceSpelling()
