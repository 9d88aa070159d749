"""A request as the body that OpenAI's API, and the many servers that speak it, want to have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from autointerp.llm.protocol import CompletionRequest

Route = Literal["/chat/completions", "/completions"]
"""Where a request goes, below the base URL."""
TokenLimit = Literal["max_tokens", "max_completion_tokens"]
"""How a server calls the limit of an answer's tokens."""
PromptLogprobs = Literal["echo", "vllm"]
"""How prompt log-probabilities are asked for: the text echoed with its log-probabilities, or vLLM's own parameter."""


def request_body(
    request: CompletionRequest,
    model: str,
    *,
    bound: bool,
    token_limit: TokenLimit = "max_tokens",
    prompt_logprobs: PromptLogprobs = "echo",
    thinking_tokens: int = 0,
    extra: Mapping[str, Any] | None = None,
) -> tuple[Route, dict[str, Any]]:
    """The route and the JSON body of one request; ``bound``: the server is to hold the answer to the JSON schema.

    ``thinking_tokens``: what a chat's limit leaves for thoughts. ``extra`` comes last and so wins.
    """
    body: dict[str, Any] = {"model": model, "temperature": request.temperature}
    if request.seed is not None:
        body["seed"] = request.seed
    if bound and request.json_schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": request.json_schema},
        }
    route: Route
    if request.text is None:
        route = "/chat/completions"
        body["messages"] = [{"role": message.role, "content": message.content} for message in request.messages]
        body[token_limit] = request.max_tokens + thinking_tokens
        if request.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    else:
        route = "/completions"
        body |= {"prompt": request.text, "max_tokens": request.max_tokens}
        if request.top_logprobs:
            body["logprobs"] = request.top_logprobs
        if request.prompt_logprobs and prompt_logprobs == "echo":
            body |= {"echo": True, "logprobs": max(request.prompt_logprobs, request.top_logprobs)}
        elif request.prompt_logprobs:
            body["prompt_logprobs"] = request.prompt_logprobs
            body["max_tokens"] = max(1, request.max_tokens)
    return route, {**body, **(extra or {})}
