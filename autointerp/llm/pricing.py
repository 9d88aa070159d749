"""What a call may take at most, and what it took: tokens, and whole nano-dollars so that sums are exact."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Protocol

from autointerp.llm.endpoints.base import Endpoint
from autointerp.llm.protocol import CompletionRequest, Usage
from autointerp.store.calls import Amount, Cap
from sae_core.errors import ConfigError

NANO = 1_000_000_000
_TOKENS_A_MESSAGE = 16
"""Most that a chat template puts around one message."""
_TOKENS_A_REQUEST = 64
"""Most that a server puts around a request: BOS, a default system text's frame, the turn that the answer begins with."""


class BudgetCap(Protocol):
    """Most that a run may spend, as its configuration says it."""

    @property
    def tokens(self) -> int | None:
        """Prompt and answer tokens, None for no cap."""
        ...

    @property
    def usd(self) -> float | None:
        """US dollars, None for no cap."""
        ...


@dataclass(frozen=True, slots=True)
class Budget:
    """A cap said in code; in a configuration it is ``[budget]``."""

    tokens: int | None = None
    usd: float | None = None


def cap_of(budget: BudgetCap) -> Cap:
    """The cap in the store's units."""
    return Cap(budget.tokens, None if budget.usd is None else round(budget.usd * NANO))


def check_price(endpoint: Endpoint, budget: BudgetCap) -> None:
    """Refuse a budget in dollars for an endpoint whose price is not known. Errors: ConfigError."""
    if budget.usd is not None and endpoint.cost(Usage(input_tokens=1, output_tokens=1)) is None:
        raise ConfigError(
            f"budget.usd is {budget.usd:g} and the price of the endpoint {endpoint.name!r} is not known, so it could not be kept to: "
            "set usd_per_million_input_tokens and usd_per_million_output_tokens (0 for a server of your own), or use budget.tokens."
        )


def most_usage(request: CompletionRequest, endpoint: Endpoint) -> Usage:
    """The most that a call can take: no tokenizer makes more tokens than a text has UTF-8 bytes."""
    texts = [message.content for message in request.messages] if request.text is None else [request.text]
    num_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
    if request.json_schema is not None:
        num_bytes += len(json.dumps(request.json_schema))
    prompt = num_bytes + _TOKENS_A_MESSAGE * len(request.messages) + _TOKENS_A_REQUEST
    thoughts = endpoint.thinking_tokens if request.text is None else 0
    # some servers write one token at least
    return Usage(input_tokens=prompt, output_tokens=max(1, request.max_tokens) + thoughts)


def beyond(most: Usage, billed: Usage) -> Usage:
    """By how much a bill is above the most that was thought possible, each kind of tokens by itself."""
    return Usage(
        input_tokens=max(0, billed.input_tokens - most.input_tokens),
        output_tokens=max(0, billed.output_tokens - most.output_tokens),
    )


def largest(one: Usage, other: Usage) -> Usage:
    """The larger count of each kind of tokens."""
    return Usage(
        input_tokens=max(one.input_tokens, other.input_tokens),
        output_tokens=max(one.output_tokens, other.output_tokens),
    )


def most_amount(usage: Usage, endpoint: Endpoint) -> Amount:
    """What is reserved for a call that takes ``usage`` at most."""
    tokens = usage.input_tokens + usage.output_tokens
    cost = endpoint.cost(usage)
    if cost is None:
        return Amount(tokens, 0)
    if endpoint.usd_per_million_cached_tokens is not None:  # where cached tokens are the dearer ones, all may be cached
        cached = usage.model_copy(update={"cached_tokens": usage.input_tokens})
        cost = max(cost, endpoint.cost(cached) or 0.0)
    return Amount(tokens, math.ceil(cost * NANO))


def nano_cost(usage: Usage, endpoint: Endpoint) -> int | None:
    """Price of a call in nano-dollars, None where it is not known."""
    cost = endpoint.cost(usage)
    return None if cost is None else round(cost * NANO)


def billed_usage(body: str) -> Usage | None:
    """The usage that a reply reports which is no valid one otherwise; None where it says nothing that makes sense."""
    try:
        reply: Any = json.loads(body)
        usage = reply["usage"]
        given, written = usage["prompt_tokens"], usage["completion_tokens"]
    except (ValueError, RecursionError, KeyError, TypeError, IndexError):
        return None
    if not (type(given) is int and type(written) is int and 0 <= given < 2**31 and 0 <= written < 2**31):
        return None
    return Usage(input_tokens=given, output_tokens=written)
