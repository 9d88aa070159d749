"""A small store of random text for tests of scorers that give windows numbers, and a completions server's tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.llm.protocol import Completion, CompletionRequest, TokenLogprob, Usage
from sae_core.records import Side
from tests.autointerp.pools import HandStore, letters, make_pool

WORDS = [
    "<s>",
    " cat",
    " dog",
    " sun",
    " sea",
    " oak",
    " fog",
    ' "',
    "\t?",
    "\n",
    "<<",
    " 9\t9\n",
    " the",
    " a",
    " of",
    " in",
]
CAT, DOG = 1, 2
WINDOW = 8
_TOKENS = re.compile(r"\n+|\t|\w+| +|.", re.DOTALL)


def strong_and_weak(context: object, at: int) -> float:
    """Latent 0: 9 on " cat", 4 on " dog" after anything, silent elsewhere."""
    token = context[at]  # type: ignore[index]
    return 9.0 if token == CAT else 4.0 if token == DOG else 0.0


def only_cat(context: object, at: int) -> float:
    """Latent 1: 2.5 on " cat"."""
    return 2.5 if context[at] == CAT else 0.0  # type: ignore[index]


def make_store(seed: int = 0, contexts: int = 40) -> HandStore:
    """Three sides of random words, " cat" and " dog" rare, contexts of 30 tokens behind the BOS: the last window is short."""
    rng = np.random.default_rng(seed)
    chance = np.ones(len(WORDS) - 1)
    chance[[CAT - 1, DOG - 1]] = 0.4
    pools = {}
    for side in Side:
        text = [[0, *(1 + rng.choice(len(WORDS) - 1, size=30, p=chance / chance.sum()))] for _ in range(contexts)]
        documents = [i // 2 for i in range(contexts)]
        rules = [strong_and_weak, only_cat, lambda context, at: 0.0, lambda context, at: float(at > 0)]
        pools[side] = make_pool(side, text, documents, rules, window=WINDOW)
    return HandStore(pools, letters(WORDS))


def evidence_of(store: HandStore, latent: int = 0, side: Side = Side.SCORE) -> LatentEvidence:
    """A latent of the store."""
    return LatentEvidence(latent, store, scored_side=side)


def label(text: str = "cats, and a little less dogs", latent: int = 0) -> Explanation:
    """A label by hand."""
    return Explanation(latent=latent, explainer="hand", text=text)


def tokens_of(text: str) -> list[str]:
    """Tokens that a server might cut a text into; runs of newlines are one token."""
    return _TOKENS.findall(text)


def prompt_completion(
    text: str,
    logprob: Callable[[int, list[str]], float],
    top: Callable[[int, list[str]], Mapping[str, float]] = lambda index, tokens: {},
    bos: bool = True,
) -> Completion:
    """The reply to a plain text: its tokens, a BOS of the server's own before them, with given log-probabilities.

    ``top`` gives probabilities of alternatives.
    """
    tokens = tokens_of(text)
    entries: list[TokenLogprob | None] = [
        TokenLogprob(
            token=token,
            logprob=logprob(index, tokens),
            top={name: math.log(p) for name, p in top(index, tokens).items()},
        )
        for index, token in enumerate(tokens)
    ]
    entries = [None, *entries] if bos else [None, *entries[1:]]
    return Completion(
        text="",
        finish_reason="stop",
        model="scripted",
        prompt_logprobs=tuple(entries),
        usage=Usage(input_tokens=len(entries), cost_usd=0.5),
    )


def text_of(request: CompletionRequest) -> str:
    """The plain text of a request."""
    assert request.text is not None
    return request.text
