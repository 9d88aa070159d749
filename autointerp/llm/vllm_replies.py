"""vLLM's outputs as replies in the shape of OpenAI's API, so that one validation reads all replies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from autointerp.llm.protocol import CompletionRequest

_IMPOSSIBLE = -9999.0
"""What vLLM's own server writes for minus infinity, which JSON does not have."""


def reply_of(output: Any, request: CompletionRequest, model: str) -> str:
    """A finished ``vllm.RequestOutput`` as JSON text."""
    chat = request.text is None
    choices = [_choice(answer, request, chat) for answer in output.outputs]
    if request.prompt_logprobs:
        for choice in choices:
            choice["prompt_logprobs"] = [_alternatives(entry) for entry in output.prompt_logprobs or []]
            choice["prompt_token_ids"] = list(output.prompt_token_ids)
    read = len(output.prompt_token_ids)
    written = sum(len(answer.token_ids) for answer in output.outputs)
    usage = {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": output.num_cached_tokens or 0},
    }
    kind = "chat.completion" if chat else "text_completion"
    return json.dumps({"object": kind, "model": model, "choices": choices, "usage": usage})


def _choice(answer: Any, request: CompletionRequest, chat: bool) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": answer.index, "finish_reason": answer.finish_reason}
    if chat:
        choice["message"] = {"role": "assistant", "content": answer.text}
    else:
        choice["text"] = answer.text
    # where they are missing all the same, validation says so
    if request.top_logprobs and len(answer.logprobs or ()) == len(answer.token_ids):
        tokens = [_token(token, entry) for token, entry in zip(answer.token_ids, answer.logprobs, strict=True)]
        choice["logprobs"] = {"content": tokens} if chat else _lists(tokens)
    return choice


def _token(token_id: int, entry: Mapping[int, Any]) -> dict[str, Any]:
    """One answer token with its alternatives, the likeliest first."""
    ranked = sorted(entry.values(), key=lambda item: -item.logprob)
    tops = [{"token": item.decoded_token or "", "logprob": _finite(item.logprob)} for item in ranked]
    own = entry[token_id]
    return {"token": own.decoded_token or "", "logprob": own.logprob, "top_logprobs": tops}


def _lists(tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same as the parallel lists of the completions API."""
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [
            {item["token"]: item["logprob"] for item in reversed(token["top_logprobs"])} for token in tokens
        ],
    }


def _alternatives(entry: Mapping[int, Any] | None) -> dict[str, Any] | None:
    """One prompt token's alternatives by token id; None for the first token."""
    if entry is None:
        return None
    return {
        str(token_id): {"logprob": _finite(item.logprob), "rank": item.rank, "decoded_token": item.decoded_token or ""}
        for token_id, item in entry.items()
    }


def _finite(logprob: float) -> float:
    return _IMPOSSIBLE if logprob == float("-inf") else logprob
