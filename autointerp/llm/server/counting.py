"""How the test server counts tokens, and which of them a prefix cache would have held.

The rule: with a ``tokenizer.json``, the number of ids that it gives without special tokens; without one, the UTF-8 bytes over 4,
rounded up. A conversation is counted as it is rendered: for each message ``<|role|>``, a newline, its text and a newline, and in the
end ``<|assistant|>`` and a newline. A JSON schema is not counted: servers keep to it while they sample. Where a reply lists tokens
with their log-probabilities, those are counted; without a tokenizer each of them is one character.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

BLOCK_TOKENS = 16
"""Tokens of one block of the prefix cache; only whole blocks are found again."""
_BYTES_PER_TOKEN = 4


class Counted(NamedTuple):
    """Tokens of a prompt."""

    num_tokens: int
    """All of them."""
    blocks: list[Any]
    """One hashable value for each whole block of 16 tokens."""


class TokenCounter:
    """Counts tokens and cuts texts into them."""

    def __init__(self, tokenizer_path: str | None = None) -> None:
        self.tokenizer: Any = None
        if tokenizer_path is not None:
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_file(tokenizer_path)

    @property
    def rule(self) -> str:
        """The rule, in words, for reports."""
        return "UTF-8 bytes / 4" if self.tokenizer is None else "the given tokenizer"

    def count(self, text: str) -> int:
        """Number of tokens of a text."""
        if self.tokenizer is None:
            return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN)
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def counted(self, text: str) -> Counted:
        """Number of tokens of a prompt, and its whole blocks."""
        size = BLOCK_TOKENS
        if self.tokenizer is None:
            data = text.encode("utf-8", "surrogatepass")
            size *= _BYTES_PER_TOKEN
            blocks = [data[i : i + size] for i in range(0, len(data) - size + 1, size)]
            return Counted(-(-len(data) // _BYTES_PER_TOKEN), blocks)
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return Counted(len(ids), [tuple(ids[i : i + size]) for i in range(0, len(ids) - size + 1, size)])

    def pieces(self, text: str) -> list[str]:
        """A text cut into tokens, joined equal to it; without a tokenizer, one character a token."""
        if self.tokenizer is None:
            return list(text)
        offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets
        # characters between two tokens go to the later one, those after the last to the last
        ends = [end for _, end in offsets]
        if not ends:
            return [text] if text else []
        ends[-1] = len(text)
        pieces, begin = [], 0
        for end in ends:
            pieces.append(text[begin : max(begin, end)])
            begin = max(begin, end)
        return pieces

    def first(self, text: str, num_tokens: int) -> str:
        """The text's first tokens."""
        if self.tokenizer is None:
            data = text.encode("utf-8", "surrogatepass")[: num_tokens * _BYTES_PER_TOKEN]
            return data.decode("utf-8", "ignore")
        return "".join(self.pieces(text)[:num_tokens])


class PrefixCache:
    """Which leading blocks of a prompt earlier prompts began with, as a server with an endless cache would know."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def cached_tokens(self, prompt: Counted) -> int:
        """Tokens of the longest common prefix with any earlier prompt, in whole blocks; the last token is always fresh."""
        cached = chain = 0
        for block in prompt.blocks:
            # the hash of all blocks up to this one, so that one that was seen has had all before it seen too
            chain = hash((chain, block))
            cached += chain in self._seen
            self._seen.add(chain)
        most = max(prompt.num_tokens - 1, 0) // BLOCK_TOKENS
        return min(cached, most) * BLOCK_TOKENS


def render(messages: Iterable[dict[str, Any]]) -> str:
    """A conversation as the text that is counted."""
    parts = [f"<|{message.get('role')}|>\n{content_text(message.get('content'))}\n" for message in messages]
    return "".join(parts) + "<|assistant|>\n"


def content_text(content: Any) -> str:
    """Text of a message: a string, or a list of parts of which the texts count."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return ""
