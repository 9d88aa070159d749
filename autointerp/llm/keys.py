"""The key under which a reply is kept: the same for the same request to the same endpoint in the same scope, and no other."""

from __future__ import annotations

import hashlib
from typing import Any

from autointerp.config import canonical_json
from autointerp.llm.endpoints.base import Endpoint
from autointerp.llm.protocol import CompletionRequest


def key_base(endpoint: Endpoint, scope: str) -> Any:
    """What the keys of all requests to an endpoint share, hashed once: its name, model and what else decides answers.

    ``scope``: who shares replies, such as the id of a run; a nightly run of the same configuration has its own, so that
    a judge that drifts is seen.
    """
    # 1: the form of the key; raised where it changes, so that old replies are asked anew instead of mistaken
    return hashlib.sha256(_bytes(canonical_json([1, scope, endpoint.identity()])))


def reply_key(request: CompletionRequest, base: Any) -> str:
    """sha256 of everything that decides the answer, 64 hex digits; ``base`` comes from :func:`key_base`."""
    fields = [
        [[message.role, message.content] for message in request.messages],
        request.text,
        request.max_tokens,
        request.temperature,
        request.seed,
        request.sample,
        request.json_schema,
        request.top_logprobs,
        request.prompt_logprobs,
        request.prompt_hash,
    ]
    hasher = base.copy()
    hasher.update(_bytes(canonical_json(fields)))
    return str(hasher.hexdigest())


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a corpus may hold lone surrogates
