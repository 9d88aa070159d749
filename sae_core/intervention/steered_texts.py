"""Has the subject continue prompts with one latent steered, with others, and with none, from the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_core.attachment import AttachedCoder
from sae_core.hashing import hash64, seed_for
from sae_core.intervention.edits import Edit, EditKind, Where
from sae_core.intervention.generation import GenerationRow, generate
from sae_core.intervention.text_evidence import CLEAN, SteeredTexts, TextState
from sae_core.subject import SubjectModel


@dataclass(frozen=True, eq=False)
class TextPrompt:
    """What a text continues."""

    token_ids: NDArray[np.int32]
    """The BOS included; steering begins at the last one."""
    context: int = -1
    """Ordinal of the context that it is a part of; -1 where it is none of the corpus."""
    instruction: str = ""
    """What it asks for, where it is none of the corpus."""


@dataclass(frozen=True)
class _Text:
    """One row to be."""

    latent: int
    prompt: int
    steered: int
    target: float
    alpha: float


def steer_texts(
    subject: SubjectModel,
    attached: AttachedCoder,
    states: Mapping[int, TextState],
    prompts: Mapping[int, Sequence[TextPrompt]],
    strengths: Mapping[int, Mapping[float, float]],
    *,
    others: Mapping[int, Sequence[int]] | None = None,
    num_others: int = 0,
    new_tokens: int = 8,
    temperature: float = 1.0,
    batch_tokens: int = 8192,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> SteeredTexts:
    """Continuations of each latent's prompts: a clean one, one at each of its strengths and, for each of these, one with each of
    ``num_others`` other latents steered at the same target.

    Steering begins at a prompt's last token, as the strengths were found, and goes on at every token that is written. Which other
    latents a prompt meets is drawn by hash, without replacement.

    Args:
        subject: the model.
        attached: the coder on it.
        states: every latent that is asked for; those whose state is TEXTS get texts.
        prompts: by latent; none may leave less room than ``new_tokens``.
        strengths: alpha by latent and target, of the latents asked for and of those that may stand beside them.
        others: by latent those that may stand beside it; None for none.
        num_others: how many of them, fewer where fewer have a strength at the target.
        new_tokens: most tokens of a text.
        temperature: of the draws.
        batch_tokens: positions of one batch.
        seed: of the draws: texts of one prompt meet the same chances.
        progress: told the latents done.

    Raises:
        CoderError: the coder has no such latent.
        NonFiniteError: the subject gave NaN or infinite values.
    """
    tables: list[TextPrompt] = []
    texts: list[_Text] = []
    width = (0, new_tokens)
    tokens = [np.empty(width, np.int32)]
    own, clean = [np.empty(width, np.float32)], [np.empty(width, np.float32)]
    for done, latent in enumerate(sorted(states), start=1):
        if states[latent] is TextState.TEXTS:
            first, mine = len(tables), list(prompts[latent])
            rows = _texts(latent, len(mine), first, strengths, (others or {}).get(latent, ()), num_others, seed)
            found = _written(subject, attached, mine, rows, first, new_tokens, temperature, batch_tokens, seed)
            tokens.append(found[0])
            own.append(found[1])
            clean.append(found[2])
            tables += mine
            texts += rows
        progress(done)
    lengths = [len(prompt.token_ids) for prompt in tables]
    ids = [np.asarray(prompt.token_ids, dtype=np.int32) for prompt in tables]
    asked = [prompt.instruction for prompt in tables]
    return SteeredTexts(
        latents=np.array(sorted(states), dtype=np.int32),
        state=np.array([states[latent] for latent in sorted(states)], dtype=np.uint8),
        prompt_context=np.array([prompt.context for prompt in tables], dtype=np.int32),
        prompt_start=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_tokens=np.concatenate([np.empty(0, dtype=np.int32), *ids]),
        latent=np.array([text.latent for text in texts], dtype=np.int32),
        prompt=np.array([text.prompt for text in texts], dtype=np.int32),
        steered=np.array([text.steered for text in texts], dtype=np.int32),
        target=np.array([text.target for text in texts], dtype=np.float64),
        alpha=np.array([text.alpha for text in texts], dtype=np.float64),
        tokens=np.concatenate(tokens),
        logprob_own=np.concatenate(own),
        logprob_clean=np.concatenate(clean),
        instructions=asked if any(asked) else [],
        temperature=temperature,
    )


def _texts(
    latent: int,
    count: int,
    first: int,
    strengths: Mapping[int, Mapping[float, float]],
    others: Sequence[int],
    num_others: int,
    seed: int,
) -> list[_Text]:
    """The rows of one latent, prompt by prompt."""
    rows = []
    for number in range(count):
        prompt = first + number
        rows.append(_Text(latent, prompt, CLEAN, np.nan, 0.0))
        for target, alpha in sorted(strengths[latent].items()):
            rows.append(_Text(latent, prompt, latent, target, alpha))
            able = np.array([o for o in others if o != latent and target in strengths.get(o, {})], dtype=np.int64)
            order = np.argsort(hash64(able, number, seed_for(seed, "others", latent)), kind="stable")
            rows += [_Text(latent, prompt, o, target, strengths[o][target]) for o in able[order[:num_others]].tolist()]
    return rows


def _written(
    subject: SubjectModel,
    attached: AttachedCoder,
    prompts: Sequence[TextPrompt],
    rows: Sequence[_Text],
    first: int,
    new_tokens: int,
    temperature: float,
    batch_tokens: int,
    seed: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """Tokens and both log-probabilities of the rows; a token that ends a text is no part of it."""
    wanted = []
    for row in rows:
        last = len(prompts[row.prompt - first].token_ids) - 1
        edit = Edit(row.steered, EditKind.STEER, row.alpha, Where.EVERYWHERE, first=last)
        wanted.append(GenerationRow(row.prompt - first, None if row.steered == CLEAN else edit, seed))
    made = generate(
        subject,
        attached,
        [prompt.token_ids for prompt in prompts],
        wanted,
        new_tokens=new_tokens,
        temperature=temperature,
        batch_tokens=batch_tokens,
    )
    ended = np.isin(made.tokens, sorted(subject.special_ids)).cumsum(axis=1) > 0
    written = (made.tokens >= 0) & ~ended
    return (
        np.where(written, made.tokens, -1).astype(np.int32),
        np.where(written, made.log_probs, 0).astype(np.float32),
        np.where(written, made.clean_log_probs, 0).astype(np.float32),
    )
