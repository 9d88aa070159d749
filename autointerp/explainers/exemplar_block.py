"""Firing windows as an explainer reads them: quoted, the firing tokens marked, the strongest ones listed with their activations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autointerp.prompting.quoting import Quoted, json_text, quote_windows
from autointerp.sampling.window import ShownWindow
from sae_core.token_text import TokenText

MOST_LISTED = 3
"""Tokens of a window whose activations are listed."""


def exemplar_block(
    windows: Sequence[ShownWindow],
    pieces: TokenText,
    *,
    largest: float,
    mark_share: float,
    context_tokens: int = 0,
    show_activations: bool = True,
) -> Quoted:
    """``3 "def f(<<self>>):" | "self" 9``: activations are tenths of ``largest``, the latent's largest magnitude.

    A token is marked where its magnitude is above ``mark_share`` of ``largest``, and where it is the window's strongest,
    so that a weak window does not look like a silent one.
    """

    def marked(window: ShownWindow, index: int) -> bool:
        size = abs(float(window.activations[index]))
        return size > 0 and (size > mark_share * largest or size == window.max_activation)

    notes = [_strongest(window, pieces, largest) for window in windows] if show_activations else ()
    return quote_windows(windows, pieces, context_tokens=context_tokens, marked=marked, notes=notes)


def tenths(activation: float, largest: float) -> int:
    """An activation on the scale of 1 to 10, with its sign; 0 for none."""
    if not activation:
        return 0
    size = min(10, max(1, round(10 * abs(activation) / largest)))
    return size if activation > 0 else -size


def _strongest(window: ShownWindow, pieces: TokenText, largest: float) -> str:
    """The strongest tokens with their activations, strongest first."""
    texts = pieces.pieces(int(i) for i in window.token_ids)
    order = np.argsort(-np.abs(window.activations), kind="stable")[:MOST_LISTED]
    listed = []
    for index in order[window.activations[order] != 0]:
        # a token that is the rest of a character is shown as the whole character
        shown = next((texts[i] for i in range(int(index), -1, -1) if texts[i]), "")
        listed.append(f"{json_text(shown)} {tenths(float(window.activations[index]), largest)}")
    return ", ".join(listed)
