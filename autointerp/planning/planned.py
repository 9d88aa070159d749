"""What a component says of its calls before any is made: how many, and about how long they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autointerp.prompting.prompt import Prompt

CHARACTERS_PER_TOKEN = 4.0
"""Of English text in the tokenizers of today's chat models, about."""
TOKENS_PER_SUBJECT_TOKEN = 1.3
"""Prompt tokens for each of the subject's in a quoted window: other cuts, escapes, spaces that are kept."""
MESSAGE_TOKENS = 4
"""What a chat template adds to each message, about."""
BLOCK_TOKENS = 12
"""The two delimiters around quoted windows, about."""
LINE_TOKENS = 3
"""Number, quotation marks and line break of a quoted window, about."""
HEADING_TOKENS = 5
"""A line such as "Question 2, set 3"."""
MARK_TOKENS = 2
"""The signs around a window's marked tokens, about."""
NOTE_TOKENS = 8
"""A window's strongest tokens with their activations, about."""
LABEL_KEY_TOKENS = 6
"""What stands around the label in an answer."""
TEST_TOKENS = 30
"""One text of an explainer's own with what is said of it."""
ITEM_TOKENS = 2
"""One 0 or 1 of an answer's array with its comma."""


@dataclass(frozen=True, slots=True)
class PlanSizes:
    """What the length and number of prompts depend on beside a component's own fields."""

    window_length: int = 32
    """Tokens of a window, the subject's."""
    window_tokens: float = 32 * TOKENS_PER_SUBJECT_TOKEN
    """Prompt tokens of one window's text."""
    label_tokens: float = 20.0
    """Tokens of one label."""
    steering_targets: int = 3
    """Strengths of steering at which answers are written, at most: as many as the run's steering aims at."""

    def windows(self, count: float, *, context_tokens: int = 0, each: float = 0.0) -> float:
        """Prompt tokens of one block of quoted windows, ``each`` further ones with every window."""
        before = context_tokens * self.window_tokens / self.window_length
        return BLOCK_TOKENS + count * (self.window_tokens + before + LINE_TOKENS + each)


@dataclass(frozen=True, slots=True)
class PlannedCalls:
    """Calls of one sort for one latent, or for one of its labels. Tokens are those of one call, in the mean."""

    purpose: str
    """What they are for: the ledger's word."""
    endpoint: str
    """Name of the endpoint, "" for the first one."""
    calls: float
    """How many."""
    static_tokens: float
    """Prompt tokens at the start that are the same in all of them, for all latents: a prefix cache holds them."""
    fresh_tokens: float
    """Prompt tokens after these."""
    answer_tokens: float
    """Tokens of the answer, as it is expected."""
    most_answer_tokens: int
    """Tokens that the answer may have."""
    joined_tokens: float = 0.0
    """Prompt tokens, all calls together, of windows that join calls which are counted elsewhere."""
    joined_answer_tokens: float = 0.0
    """Tokens of the answers about them."""
    most: PlannedCalls | None = None
    """The same at most, where how many they are hangs on answers and the rest is what is expected; None where it does not."""

    @property
    def prompt_tokens(self) -> float:
        """Of one call."""
        return self.static_tokens + self.fresh_tokens


def text_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def static_tokens(prompt: Prompt) -> int:
    """Prompt tokens of the instructions and the shots."""
    texts = [prompt.system, *(text for shot in prompt.shots for text in (shot.user, shot.answer))]
    return sum(text_tokens(text.strip()) + MESSAGE_TOKENS for text in texts)


def planned_calls(
    prompt: Prompt,
    purpose: str,
    endpoint: str,
    *,
    calls: float,
    filled: float,
    answer: float,
    most_answer: int,
) -> PlannedCalls:
    """Calls with one prompt file, whose placeholders take ``filled`` tokens together."""
    fresh = text_tokens(prompt.user.strip()) + MESSAGE_TOKENS + filled
    return PlannedCalls(purpose, endpoint, calls, static_tokens(prompt), fresh, answer, most_answer)


def num_calls(units: int, unit: int, per_call: int) -> int:
    """Calls into which ``units`` of ``unit`` questions each are dealt (``judging.batching.deal``)."""
    return -(-units // max(1, per_call // unit))
