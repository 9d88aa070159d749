"""Finds places of a plain-text prompt among the tokens that a server gives log-probabilities of.

How a server writes its tokens is not to be relied on: some begin with a BOS of their own, SentencePiece's lose their leading space,
a character that is split over tokens shows as replacement signs. Adding up lengths would slip. So places are counted by a sign that
the prompt's author controls, a tab or a newline: no tokenizer's token spans from before such a sign's end to the text behind it
without holding the sign itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from autointerp.llm.asking import BadAnswer
from autointerp.llm.protocol import TokenLogprob

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def holders(entries: Sequence[TokenLogprob | None], text: str, sign: str) -> list[int]:
    """Index of the token that holds each ``sign`` of ``text``, in order; the first token, which has no entry, must hold none.

    Errors: BadAnswer where the server's tokens hold more or fewer of them than the text.
    """
    found = [
        index
        for index, entry in enumerate(entries)
        if entry is not None
        for _ in range(_plain(entry.token).count(sign))
    ]
    if len(found) != text.count(sign):
        raise BadAnswer(
            f"the server's prompt tokens hold {len(found)} of the {text.count(sign)} {sign!r} of the text: they do not line up"
        )
    return found


def ends_with(entry: TokenLogprob | None, sign: str) -> bool:
    """Whether what follows ``sign`` begins with the next token."""
    return entry is not None and _plain(entry.token).endswith(sign)


def _plain(token: str) -> str:
    """A token's text, where a server writes a byte's token as it stands in SentencePiece's vocabulary (``<0x0A>``)."""
    byte = _BYTE.fullmatch(token)
    return chr(int(byte[1], 16)) if byte else token
