"""What a component says of its calls before any is made: how many, and about how long they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from autointerp.prompting.prompt import Prompt

CHARACTERS_PER_TOKEN = 4.0
"""Of English text in the tokenizers of today's chat models, about; a plan is an estimate and says so."""
MESSAGE_TOKENS = 4
"""What a chat template adds to each message, about."""
LINE_TOKENS = 4
"""Number, quotation marks and line break of one quoted window, about."""
BLOCK_TOKENS = 14
"""The two delimiters around quoted windows, about."""


@dataclass(frozen=True, slots=True)
class PlanSizes:
    """What the length of a prompt depends on beside the component's own fields."""

    window_tokens: float = 32 * 1.3
    """Prompt tokens of one window's text: the subject's tokens times 1.3, unless it was measured."""
    context_tokens: float = 1.3
    """Prompt tokens for each token of the subject that is shown before a window."""
    label_tokens: float = 24.0
    """Prompt tokens of one label."""
    most_exemplars: int = 30
    """Windows that the exemplar store keeps of a latent on a side (top and sampled ones)."""
    top_exemplars: int = 10
    """Top ones among them."""
    measured: bool = False
    """Whether the window's tokens were measured on windows that are there."""

    def windows(self, count: float, shown_before: int = 0, marks: float = 0.0) -> float:
        """Prompt tokens of ``count`` quoted windows, each with ``marks`` further tokens and so many of the subject's before it."""
        return BLOCK_TOKENS + count * (self.window_tokens + shown_before * self.context_tokens + LINE_TOKENS + marks)


@dataclass(frozen=True, slots=True)
class PlannedCalls:
    """Calls of one sort for one latent. Tokens are those of one call, in the mean."""

    purpose: str
    """What they are for: the ledger's word, usually the component's kind."""
    endpoint: str
    """Name of the endpoint, "" for the first one."""
    calls: float
    """Calls for one latent."""
    static_tokens: float
    """Prompt tokens at the start that are the same for all latents, so that a prefix cache holds them."""
    fresh_tokens: float
    """Prompt tokens after these."""
    answer_tokens: float
    """Tokens of the answer, as it is expected."""
    most_answer_tokens: int
    """Tokens that the answer may have."""
    extras: Mapping[str, float] = field(default_factory=dict)
    """Further figures for a person, e.g. how many of the calls a cheaper run leaves out."""

    @property
    def prompt_tokens(self) -> float:
        """Of one call."""
        return self.static_tokens + self.fresh_tokens


def text_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def static_tokens(prompt: Prompt) -> int:
    """Prompt tokens of the instructions and the shots: the same in every call."""
    texts = [prompt.system, *(text for shot in prompt.shots for text in (shot.user, shot.answer))]
    return sum(text_tokens(text) + MESSAGE_TOKENS for text in texts)


def user_tokens(prompt: Prompt) -> int:
    """Prompt tokens of the question with its placeholders, without what fills them."""
    return text_tokens(prompt.user) + MESSAGE_TOKENS
