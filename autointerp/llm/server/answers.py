"""Who answers behind the test server: an ``Answerer`` reads a request and says what the model would."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class TokenOdds:
    """Log-probability of one token, and of what could have stood in its place."""

    logprob: float
    """Natural logarithm of its probability; ``nan`` and ``-inf`` are sent as they are."""
    top: dict[str, float]
    """Log-probabilities of alternatives by text, strongest first; the token itself is put among them by the server."""


CERTAIN = TokenOdds(-1e-4, {})
"""What stands for a token about which nothing better is known."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answers to one request."""

    text: str
    """The answer."""
    finish_reason: str = "stop"
    """As the API names it; ``length`` is put in by the server where ``max_tokens`` cuts the text."""
    refusal: str | None = None
    """A refusal in the place of the text."""
    odds: dict[int, TokenOdds] | None = None
    """Log-probabilities of characters by their place in the text; a token has those of the last of its characters that
    stands here, any other is certain. None: all are."""


class Answerer(Protocol):
    """Something that answers requests. It may be called by the server's thread only, one request at a time."""

    def answer(self, request: dict[str, Any]) -> Reply:
        """The answer to a body of chat/completions or completions; for ``n`` > 1 it is asked n times."""
        ...

    def prompt_odds(self, text: str, pieces: Sequence[str]) -> list[TokenOdds]:
        """Log-probabilities of a plain prompt's tokens, one a piece."""
        ...


class PlainAnswerer:
    """An answer without a mind: a fixed text, or the smallest value that the JSON schema allows.

    With a temperature, an answer of free text is three words drawn by the request's seed, or by chance's stand-in, a
    counter, where it has none. Prompt tokens have log-probabilities that depend on their text alone.
    """

    def __init__(self, text: str = "Words that the test server answers with whatever it is asked.") -> None:
        self.text = text
        self._draws = itertools.count()

    def answer(self, request: dict[str, Any]) -> Reply:
        """The fixed answer."""
        schema = schema_of(request)
        if schema is not None:
            return Reply(json.dumps(smallest(schema)))
        if request.get("temperature"):
            seed = request.get("seed")
            digest = hashlib.sha256(f"{seed if seed is not None else ('draw', next(self._draws))}".encode()).hexdigest()
            return Reply(f"drawn {digest[:6]} {digest[6:12]}")
        return Reply(self.text)

    def prompt_odds(self, text: str, pieces: Sequence[str]) -> list[TokenOdds]:
        """A log-probability between -8 and 0 for each token, and weaker ones for other tokens."""
        return [_odds_of(piece) for piece in pieces]


def _odds_of(piece: str) -> TokenOdds:
    share = hashlib.sha256(piece.encode("utf-8", "surrogatepass")).digest()[0] / 255
    return TokenOdds(-8 * share - 0.01, {})


def filled(odds: TokenOdds, piece: str, most: int) -> list[tuple[str, float]]:
    """``most`` alternatives with the token itself among them, strongest first; what is missing shares what is left."""
    if most <= 0:
        return []
    listed = {piece: odds.logprob, **{text: value for text, value in odds.top.items() if text != piece}}
    finite = [value for value in listed.values() if math.isfinite(value)]
    left = 1 - sum(math.exp(value) for value in finite)
    missing = max(most - len(listed), 0)
    for place in range(missing):
        listed.setdefault(f"~{place}", math.log(max(left, 1e-9) * 0.5 / missing))
    return sorted(listed.items(), key=lambda entry: math.inf if math.isnan(entry[1]) else -entry[1])[:most]


def schema_of(request: dict[str, Any]) -> dict[str, Any] | None:
    """The JSON schema that a request binds its answer to."""
    form = request.get("response_format")
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        return None
    schema = (form.get("json_schema") or {}).get("schema")
    return schema if isinstance(schema, dict) else None


def smallest(schema: dict[str, Any]) -> Any:
    """A small value that a plain JSON schema allows (objects, arrays, strings, numbers, enum, const, anyOf; no patterns)."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return smallest(schema[union][0])
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object" or (kind is None and "properties" in schema):
        properties = schema.get("properties", {})
        names = schema.get("required", list(properties))
        return {name: smallest(properties.get(name, {})) for name in names}
    if kind == "array":
        prefix = [smallest(item) for item in schema.get("prefixItems", [])]
        item = schema.get("items")
        more = max(int(schema.get("minItems", 0)) - len(prefix), 0)
        return prefix + [smallest(item if isinstance(item, dict) else {}) for _ in range(more)]
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        return max(math.ceil(low), 0) if schema.get("maximum", 0) >= 0 else schema["maximum"]
    if kind == "boolean":
        return False
    if kind == "null":
        return None
    return ("some text " * (int(schema.get("minLength", 9)) // 10 + 1)).strip()[: int(schema.get("maxLength", 10**6))]
