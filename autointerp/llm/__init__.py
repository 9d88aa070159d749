"""LLM clients: the protocol that explainers and scorers speak."""

from __future__ import annotations

from autointerp.llm.protocol import Capability, Completion, CompletionRequest, LLMClient, Message, TokenLogprob, Usage

__all__ = ["Capability", "Completion", "CompletionRequest", "LLMClient", "Message", "TokenLogprob", "Usage"]
