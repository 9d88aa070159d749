"""Which of the texts that were written with a latent steered people are shown, and which windows they see with them.

The subject goes on from text of the score side (``pipeline/stages/steer_texts.py``). So whoever reads its texts reads the ends of windows that may score an edit:
these count as seen.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.pipeline.context import RunContext
from sae_core.intervention.text_evidence import CLEAN, SteeredTexts
from sae_core.records import Side

TextsKind = Literal["steered_texts", "steered_answers"]
_MOST: dict[TextsKind, int] = {"steered_texts": 4, "steered_answers": 2}
"""Prompts of a kind that are shown."""
_PROMPT_TOKENS = 24
"""Of a prompt its last ones."""
_ROWS = ("latent", "prompt", "steered", "target", "alpha", "tokens", "logprob_own", "logprob_clean")


class ShownPrompt(NamedTuple):
    """What is shown of one prompt; rows are those of ``texts``."""

    kind: TextsKind
    texts: SteeredTexts
    """The latent's texts alone."""
    prompt: int
    context: int
    """Ordinal of the context that it is a part of; -1 where it is none of the corpus."""
    first: int
    """Where in the prompt what is shown begins; 0 for all of it."""
    instruction: str
    """What it asks for, shown in its place; "" where it is text."""
    clean: int | None
    """Row of the text with nothing steered; None where there is none."""
    steered: tuple[int, ...]
    """Rows of those with the latent steered, the weakest first."""
    others: tuple[int, ...]
    """Rows of those with another latent steered in its place, to the same targets."""

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """Tokens of the prompt that are shown."""
        return self.texts.prompt_ids(self.prompt)[self.first :]


def shown_steering(context: RunContext, source: str, latent: int) -> list[ShownPrompt]:
    """The prompts of a latent that are shown with their texts; none where the run made none.

    Errors: InputError where a file is not what the stage writes.
    """
    found: list[ShownPrompt] = []
    ordinal = bisect_left(context.latents(source), latent) // context.config.chunk_latents
    for kind, most in _MOST.items():
        path = context.folder.evidence(source, kind, ordinal)
        if path.is_file():
            found += list(_prompts(kind, _of_latent(SteeredTexts.load(path), latent), latent))[:most]
    return found


def windows_shown(context: RunContext, source: str, latent: int) -> frozenset[tuple[int, int]]:
    """Places (context, position) of the windows of which prompts show something."""
    shown = [prompt for prompt in shown_steering(context, source, latent) if prompt.context >= 0]
    if not shown:
        return frozenset()
    pool = context.exemplars(source).pool(Side.SCORE)
    length = pool.tokens.shape[1] - pool.context_tokens
    places: set[tuple[int, int]] = set()
    for prompt in shown:
        end = prompt.first + len(prompt.token_ids)
        places.update((prompt.context, start) for start in range(prompt.first // length * length, end, length))
    return frozenset(places)


def _of_latent(texts: SteeredTexts, latent: int) -> SteeredTexts:
    rows = texts.rows_of(latent)
    return replace(texts, **{name: getattr(texts, name)[rows] for name in _ROWS})


def _prompts(kind: TextsKind, texts: SteeredTexts, latent: int) -> Iterator[ShownPrompt]:
    for prompt in dict.fromkeys(texts.prompt.tolist()):
        rows = np.flatnonzero(texts.prompt == prompt)
        rows = rows[np.argsort(texts.target[rows], kind="stable")]  # NaN, of the clean text, comes last
        steered = texts.steered[rows]
        clean = rows[steered == CLEAN].tolist()
        instruction = texts.instructions[prompt] if texts.instructions else ""
        yield ShownPrompt(
            kind=kind,
            texts=texts,
            prompt=prompt,
            context=int(texts.prompt_context[prompt]),
            first=max(len(texts.prompt_ids(prompt)) - _PROMPT_TOKENS, 0),
            instruction=instruction,
            clean=clean[0] if clean else None,
            steered=tuple(rows[steered == latent].tolist()),
            others=tuple(rows[(steered != latent) & (steered != CLEAN)].tolist()),
        )
