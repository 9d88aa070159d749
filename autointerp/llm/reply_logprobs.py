"""Log-probabilities in a raw reply, in the shapes of OpenAI's two APIs and of vLLM. Errors everywhere: InvalidReply."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autointerp.llm.call_errors import InvalidReply
from autointerp.llm.foreign_text import clean
from autointerp.llm.protocol import CompletionRequest, TokenLogprob

_ROUNDING = 1e-3
"""As far above 0 as a log-probability may come by rounding."""
_NONE_GIVEN = "asked for log-probabilities and got none"


def answer_logprobs(choice: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    """One an answer token, in the shape of either API."""
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        raise InvalidReply(_NONE_GIVEN)
    if "tokens" in logprobs or "token_logprobs" in logprobs:
        return tuple(_given(_token_lists(logprobs)))
    content = logprobs.get("content")
    if not isinstance(content, list):
        raise InvalidReply(_NONE_GIVEN)
    return tuple(_chat_token(entry) for entry in content)


def echoed_logprobs(
    choice: Mapping[str, Any], request: CompletionRequest, prompt_tokens: int | None
) -> tuple[tuple[TokenLogprob | None, ...], tuple[TokenLogprob, ...]]:
    """Those of an echoed prompt and of the answer behind it.

    ``prompt_tokens``: how many of them are the prompt's, as the usage says; else the tokens' offsets in the text tell.
    """
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict) or not _start(choice.get("text")).startswith(_start(request.text)):
        # a server that does not know "echo" leaves it out and sends those of the answer
        raise InvalidReply("asked for the prompt's log-probabilities and got none")
    tokens = _token_lists(logprobs)
    length = len(request.text or "")
    offsets = logprobs.get("text_offset")
    if prompt_tokens is None and isinstance(offsets, list) and all(type(o) is int for o in offsets):
        prompt_tokens = sum(offset < length for offset in offsets[: len(tokens)])
    if prompt_tokens is None:
        raise InvalidReply("the reply does not say which of its tokens are the prompt's")
    if not tokens or prompt_tokens > len(tokens):
        raise InvalidReply(f"the reply has {len(tokens)} log-probabilities for {prompt_tokens} prompt tokens")
    first, rest = tokens[:1], tokens[1:]
    given = (*first, *_given(rest))
    return given[:prompt_tokens], tuple(_given(given[prompt_tokens:]))


def vllm_prompt_logprobs(choice: Mapping[str, Any]) -> tuple[TokenLogprob | None, ...]:
    """vLLM's ``prompt_logprobs``: an object a token with an entry for each alternative, the token's own one first."""
    entries = choice.get("prompt_logprobs")
    if not isinstance(entries, list) or not entries:
        raise InvalidReply("the reply's prompt_logprobs are not a list of at least one entry")
    token_ids = choice.get("prompt_token_ids")
    if not isinstance(token_ids, list) or len(token_ids) != len(entries):
        token_ids = [None] * len(entries)
    tokens = [_vllm_token(entry, token_id) for entry, token_id in zip(entries, token_ids, strict=True)]
    return (*tokens[:1], *_given(tokens[1:]))


def _start(text: Any) -> str:
    """The first letters of a text without white space, which servers may change."""
    return "".join(text[:256].split())[:16] if isinstance(text, str) else ""


def _given(tokens: Iterable[TokenLogprob | None]) -> Iterable[TokenLogprob]:
    for token in tokens:
        if token is None:
            raise InvalidReply("the reply lacks the log-probability of a token")
        yield token


def _vllm_token(entry: Any, token_id: Any) -> TokenLogprob | None:
    if entry is None:
        return None
    if not isinstance(entry, dict) or not entry or not all(isinstance(value, dict) for value in entry.values()):
        raise InvalidReply("an entry of the reply's prompt_logprobs is no object of alternatives")
    own = entry.get(str(token_id)) or next(iter(entry.values()))
    top = _top((value.get("decoded_token") or "", value.get("logprob")) for value in entry.values())
    return TokenLogprob(token=_text(own.get("decoded_token") or ""), logprob=_own(own.get("logprob")), top=top)


def _chat_token(entry: Any) -> TokenLogprob:
    if not isinstance(entry, dict):
        raise InvalidReply("an entry of the reply's log-probabilities is no object")
    alternatives = entry.get("top_logprobs") or []
    if not isinstance(alternatives, list) or not all(isinstance(item, dict) for item in alternatives):
        raise InvalidReply("the alternatives in the reply's log-probabilities are no list of objects")
    top = _top((item.get("token"), item.get("logprob")) for item in alternatives)
    return TokenLogprob(token=_text(entry.get("token")), logprob=_own(entry.get("logprob")), top=top)


def _token_lists(logprobs: Mapping[str, Any]) -> Sequence[TokenLogprob | None]:
    """The completions API's parallel lists; None where the log-probability is null."""
    tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    tops = logprobs.get("top_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list):
        raise InvalidReply(_NONE_GIVEN)
    if tops is None:
        tops = [None] * len(tokens)
    if not isinstance(tops, list) or not len(tokens) == len(values) == len(tops):
        raise InvalidReply("the lists of the reply's log-probabilities differ in length")
    found: list[TokenLogprob | None] = []
    for token, value, top in zip(tokens, values, tops, strict=True):
        if top is not None and not isinstance(top, dict):
            raise InvalidReply("the alternatives in the reply's log-probabilities are no objects")
        if value is None:
            found.append(None)
        else:
            found.append(TokenLogprob(token=_text(token), logprob=_own(value), top=_top((top or {}).items())))
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidReply("a token in the reply's log-probabilities is no text")
    return clean(value)


def _own(value: Any) -> float:
    """The log-probability of a token that stands in the text, so that it cannot be minus infinity."""
    if type(value) not in (int, float):
        raise InvalidReply("a log-probability in the reply is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidReply("the log-probabilities in the reply are not finite")
    if number > _ROUNDING:
        raise InvalidReply(f"a log-probability in the reply is {number:g}, which is above 0")
    return min(number, 0.0)


def _top(alternatives: Iterable[tuple[Any, Any]]) -> dict[str, float]:
    """Alternatives by their text; impossible ones are left out, and of two with one text the likelier stands."""
    top: dict[str, float] = {}
    for token, value in alternatives:
        if value == -math.inf:
            continue
        text, logprob = _text(token), _own(value)
        top[text] = max(logprob, top.get(text, -math.inf))
    return top
