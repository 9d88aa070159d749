"""Texts as a subject would write them under steering, made by hand, and a judge that knows which words each latent raises."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.llm.protocol import Completion, CompletionRequest
from sae_core.intervention.text_evidence import CLEAN, SteeredTexts, TextState
from sae_core.lens_evidence import LensEvidence
from tests.autointerp.judged_world import prompt_completion, text_of, tokens_of
from tests.autointerp.pools import HandStore, letters

NUM_LATENTS = 90
PER_LATENT = 6
PLAIN = 40
"""Words that no latent raises; they come first, behind the BOS."""
WORDS = [
    "<s>",
    *(f" plain{i}" for i in range(PLAIN)),
    *(f" w{i}x{j}" for i in range(NUM_LATENTS) for j in range(PER_LATENT)),
]
NEIGHBOURS = 5
"""The next latents, in a circle."""
STORE = HandStore({}, letters(WORDS))
_WORD = re.compile(r"w(\d+)x\d")


def raised(latent: int) -> list[int]:
    """The tokens that a latent raises."""
    first = 1 + PLAIN + PER_LATENT * latent
    return list(range(first, first + PER_LATENT))


def label(latent: int, side: str = "input", explainer: str = "hand") -> Explanation:
    """What a latent raises, in words."""
    words = [WORDS[token].strip() for token in raised(latent)]
    text = f"the words {', '.join(words)}"
    return Explanation.model_validate({"latent": latent, "explainer": explainer, "side": side, "text": text})


def lens() -> LensEvidence:
    """Neighbours by number."""
    near = [[(i + k) % NUM_LATENTS for k in range(1, NEIGHBOURS + 1)] for i in range(NUM_LATENTS)]
    empty, nothing = np.empty((NUM_LATENTS, 0), np.int32), np.empty((NUM_LATENTS, 0), np.float32)
    return LensEvidence(
        np.array(near, np.int32), np.ones((NUM_LATENTS, NEIGHBOURS), np.float32), empty, nothing, empty, nothing
    )


def written(
    latent: int = 7,
    *,
    prompts: int = 30,
    effects: dict[float, float] | None = None,
    others: Sequence[int] = (40, 60),
    length: int = 8,
    instructions: Sequence[str] = (),
    broken: Sequence[tuple[int, float]] = (),
    seed: int = 0,
    state: TextState = TextState.TEXTS,
) -> SteeredTexts:
    """Random plain words, among which stands each of a steered latent's words with a chance: ``effects`` by target.

    ``broken`` names (prompt, target) at which the text is one word again and again.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, int, float, list[int]]] = []

    def text(steered: int, chance: float) -> list[int]:
        words = raised(steered) if steered != CLEAN else [1]
        return [
            int(rng.choice(words)) if rng.random() < chance else int(rng.integers(1, 1 + PLAIN)) for _ in range(length)
        ]

    prompt_ids = [[0, *rng.integers(1, 1 + PLAIN, 20).tolist()] for _ in range(prompts)]
    for prompt in range(prompts):
        rows.append((prompt, CLEAN, np.nan, text(CLEAN, 0.0)))
        for target, chance in sorted((effects or {1.0: 0.5}).items()):
            own = [1] * length if (prompt, target) in broken else text(latent, chance)
            rows.append((prompt, latent, target, own))
            rows += [(prompt, other, target, text(other, chance)) for other in others]
    tokens = np.array([row[3] for row in rows], dtype=np.int32)
    if state is not TextState.TEXTS:
        rows, tokens = [], np.empty((0, length), np.int32)
    return SteeredTexts(
        latents=np.array([latent], np.int32),
        state=np.array([state], np.uint8),
        prompt_context=np.arange(prompts, dtype=np.int32),
        prompt_start=np.arange(prompts + 1, dtype=np.int64) * 21,
        prompt_tokens=np.array(prompt_ids, np.int32).ravel(),
        latent=np.full(len(rows), latent, np.int32),
        prompt=np.array([row[0] for row in rows], np.int32),
        steered=np.array([row[1] for row in rows], np.int32),
        target=np.array([row[2] for row in rows], np.float64),
        alpha=np.array([0.0 if row[1] == CLEAN else 2.0 for row in rows], np.float64),
        tokens=tokens,
        logprob_own=np.full(tokens.shape, -2.0, np.float32),
        logprob_clean=np.full(tokens.shape, -3.0, np.float32),
        instructions=list(instructions),
        temperature=1.0,
    )


def evidence(texts: SteeredTexts, latent: int = 7, store: HandStore = STORE) -> LatentEvidence:
    """A latent of the sample, with labels of all others."""
    return LatentEvidence(
        latent,
        store,
        lens=lens(),
        in_text_sample=frozenset({"steered_texts", "steered_answers"}),
        steered_texts=texts,
        steered_answers=texts,
        other_labels=[label(other) for other in range(NUM_LATENTS) if other != latent],
    )


def words_of(text: str) -> set[int]:
    """Latents whose words stand in a text."""
    return {int(number) for number in _WORD.findall(text)}


def knowing(request: CompletionRequest) -> Completion:
    """A judge to whom each token of a label is likelier by .5 nats for each of the label's words in the text before it."""
    whole = text_of(request)
    before, _, said = whole.rpartition("\n")
    text = re.search(r'^Continuation: "(.*)"$', before, re.MULTILINE)
    assert text is not None
    meant = words_of(said)
    hits = sum(int(number) in meant for number in _WORD.findall(text.group(1)))
    begins = len(tokens_of(before)) + 1

    def logprob(index: int, tokens: list[str]) -> float:
        # some texts make any label likelier: what stands in it beside, which all labels share
        return -3.0 + 0.5 * hits + 0.1 * (len(text.group(1)) % 5) if index >= begins else -5.0 - hits

    return prompt_completion(whole, logprob)
