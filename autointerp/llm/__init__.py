"""Language models: what is asked of them, and the way to their servers."""

from __future__ import annotations

from autointerp.llm.asking import LLM, NO_LLMS, Answer, AskFailed, BadAnswer, LLMNeed, LLMs
from autointerp.llm.protocol import (
    NO_USAGE,
    Capability,
    Completion,
    CompletionRequest,
    LLMClient,
    Message,
    TokenLogprob,
    Usage,
)

__all__ = [
    "LLM",
    "NO_LLMS",
    "NO_USAGE",
    "Answer",
    "AskFailed",
    "BadAnswer",
    "Capability",
    "Completion",
    "CompletionRequest",
    "LLMClient",
    "LLMNeed",
    "LLMs",
    "Message",
    "TokenLogprob",
    "Usage",
]
