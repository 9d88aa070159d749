"""One exemplar on one line, its firing tokens marked by strength."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from sae_core.records import Exemplar, Origin, Side
from sae_core.token_text import show_whitespace

STRENGTH_STYLES = ("black on #fff3c4", "black on #ffd873", "black on #f9a825", "bold black on #f57c00")
"""Weakest to strongest, one hue that darkens: readable for colour-blind people and in greyscale."""
_ELLIPSIS = "…"


class TokenPieces(Protocol):
    """What reads tokens, see :class:`sae_core.token_text.TokenText`."""

    def pieces(self, token_ids: Iterable[int], /) -> list[str]: ...


class ExemplarReader(Protocol):
    """What reports need of an :class:`~sae_core.exemplar_store.ExemplarStore`."""

    @property
    def pieces(self) -> TokenPieces: ...

    def exemplars(self, latent: int, side: Side, origin: Origin, /) -> list[Exemplar]: ...


@dataclass(frozen=True, slots=True)
class MarkedToken:
    """One token of a line."""

    text: str
    """Visible text: no control characters, no line ends, no text direction marks."""
    strength: float
    """|activation| over the strongest one shown, 0 to 1; 0 where the latent does not fire."""
    in_window: bool
    """False for the context before the window, in which the activations are not known."""


def marked_tokens(exemplar: Exemplar, reader: TokenPieces, scale: float | None = None) -> list[MarkedToken]:
    """Context and window of an exemplar; ``scale`` is the activation of strength 1 (default: its own peak's)."""
    context = [int(token) for token in exemplar.context_ids]
    texts = [show_whitespace(piece) for piece in reader.pieces([*context, *(int(t) for t in exemplar.token_ids)])]
    activations = np.abs(np.asarray(exemplar.activations, dtype=np.float64))
    top = scale if scale else float(activations.max(initial=0.0))
    strengths = np.concatenate([np.zeros(len(context)), np.minimum(activations / top, 1.0) if top else activations])
    return [
        MarkedToken(text, float(strength), index >= len(context))
        for index, (text, strength) in enumerate(zip(texts, strengths, strict=True))
    ]


def exemplar_line(exemplar: Exemplar, reader: TokenPieces, width: int, marks: bool, scale: float | None = None) -> Text:
    """The exemplar around its peak in at most ``width`` cells.

    Firing tokens stand on a colour; with ``marks``, for terminals without colour, between « and », a strong one (half of
    the strongest or more) between «« and »». Tokens go in as plain text, so markup in them is shown and not obeyed.
    """
    tokens = marked_tokens(exemplar, reader, scale)
    peak = len(exemplar.context_ids) + exemplar.peak
    start, stop = _span_around(tokens, peak, max(width - 2 * cell_len(_ELLIPSIS), 1), marks)
    line = Text(no_wrap=True, end="")
    if start > 0:
        line.append(_ELLIPSIS, style="dim")
    for token in tokens[start:stop]:
        if token.strength > 0:
            line.append(_shown(token, marks), style=_style(token.strength))
        else:
            line.append(token.text, style="" if token.in_window else "dim")
    if stop < len(tokens):
        line.append(_ELLIPSIS, style="dim")
    if line.cell_len > width:  # the peak token alone is wider than the line
        line = Text(set_cell_size(line.plain, max(width - 1, 0)) + _ELLIPSIS, no_wrap=True, end="")
    return line


def needs_marks(console: Console) -> bool:
    """Whether a console shows no colours (a file, a pipe, NO_COLOR, a dumb terminal)."""
    return console.color_system is None or console.no_color


def held_out_exemplars(reader: ExemplarReader, latent: int, limit: int) -> list[Exemplar]:
    """The strongest exemplars of the score side, which no explainer saw; of the explain side where there are none."""
    for side in (Side.SCORE, Side.CHOOSE, Side.EXPLAIN):
        found = reader.exemplars(latent, side, Origin.TOP)
        if found:
            return found[:limit]
    return []


def plain_line(text: str) -> str:
    """A label or a name on one line without control characters."""
    if text.isprintable():
        return text.strip()
    return "".join(c if c.isprintable() else " " if c.isspace() else f"\\x{ord(c):02x}" for c in text).strip()


def _shown(token: MarkedToken, marks: bool) -> str:
    if not marks:
        return token.text
    return f"««{token.text}»»" if token.strength >= 0.5 else f"«{token.text}»"


def _style(strength: float) -> str:
    return STRENGTH_STYLES[min(int(strength * len(STRENGTH_STYLES)), len(STRENGTH_STYLES) - 1)]


def _span_around(tokens: Sequence[MarkedToken], peak: int, width: int, marks: bool) -> tuple[int, int]:
    """The tokens ``[start, stop)`` around the peak that fit: two thirds of the room before it, which decides firing."""
    widths = [cell_len(_shown(token, marks) if token.strength > 0 else token.text) for token in tokens]
    start, stop, used = peak, peak + 1, widths[peak]
    before = 0
    while True:
        can_left = start > 0 and used + widths[start - 1] <= width
        can_right = stop < len(tokens) and used + widths[stop] <= width
        if not (can_left or can_right):
            return start, stop
        if can_left and (not can_right or before * 3 <= (used - widths[peak]) * 2):
            start -= 1
            used += widths[start]
            before += widths[start]
        else:
            used += widths[stop]
            stop += 1
