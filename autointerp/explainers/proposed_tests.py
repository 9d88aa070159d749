"""Texts that an explainer proposes to test its label, and how what was found on them is shown to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autointerp.explainers.exemplar_block import tenths
from autointerp.llm.asking import BadAnswer
from autointerp.prompting.quoting import Quoted, quote_windows
from autointerp.sampling.window import ShownWindow, Stratum
from sae_core.token_text import TokenText
from sae_core.tried_texts import TriedText

LONGEST_TEST = 300
"""Characters of a test; longer ones are left out, as are empty ones and repetitions."""


def usable_tests(tests: Sequence[Mapping[str, Any]], earlier: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The tests that can be tried: ``{"text": ..., "should_fire": ...}``. Errors: BadAnswer where none can.

    ``earlier``: texts that were tried before.
    """
    found: dict[str, dict[str, Any]] = {}
    for test in tests:
        text = str(test["text"])
        if text.strip() and len(text) <= LONGEST_TEST and text not in earlier:
            found.setdefault(text, {"text": text, "should_fire": bool(test["should_fire"])})
    if not found:
        raise BadAnswer(f"no test can be tried; give new texts of 1 to {LONGEST_TEST} characters")
    return list(found.values())


def results_block(
    tried: Sequence[TriedText], expected: Sequence[bool | None], pieces: TokenText, largest: float
) -> Quoted:
    """The tried texts with their active tokens marked: ``2 "f(<<self>>)" | expected: silent, found: fires 9``."""

    def marked(window: ShownWindow, index: int) -> bool:
        return bool(window.activations[index])

    notes = []
    for text, should_fire in zip(tried, expected, strict=True):
        found = f"fires {tenths(_strongest(text), largest)}" if text.fires else "silent"
        notes.append(f"{_EXPECTED[should_fire]}found: {found}")
    return quote_windows([_window(text) for text in tried], pieces, marked=marked, notes=notes)


_EXPECTED = {True: "expected: fires, ", False: "expected: silent, ", None: ""}


def _strongest(text: TriedText) -> float:
    """The activation that is largest by magnitude."""
    return float(max(text.activations, key=abs))


def _window(text: TriedText) -> ShownWindow:
    """A tried text, as windows are shown; it stands in no document."""
    return ShownWindow(
        token_ids=text.token_ids,
        activations=text.activations,
        context_ids=text.token_ids[:0],
        document=-1,
        context=-1,
        position=0,
        stratum=Stratum.FIRING if text.fires else Stratum.BULK,
    )
