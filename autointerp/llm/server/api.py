"""OpenAI's chat/completions, completions and models over an ``Answerer``, with what vLLM adds to them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from autointerp.llm.protocol import Capability
from autointerp.llm.server.answers import CERTAIN, Answerer, Reply, TokenOdds, filled
from autointerp.llm.server.counting import Counted, PrefixCache, TokenCounter, render

CHAT, PLAIN, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"


class APIRefusal(Exception):
    """A request that the API refuses by its own rules."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


@dataclass(frozen=True, slots=True)
class Answered:
    """A good reply."""

    body: dict[str, Any]
    """Its JSON."""
    prompt_tokens: int
    """Tokens read."""
    cached_tokens: int
    """Those of them in the prefix cache."""
    completion_tokens: int
    """Tokens written, over all choices."""


@dataclass(slots=True, eq=False)
class API:
    """Makes replies. What it was not given as a capability it ignores in silence, as some servers do."""

    answerer: Answerer
    """Who answers."""
    models: tuple[str, ...] = ("test",)
    """Models that it has."""
    capabilities: frozenset[Capability] = frozenset(Capability)
    """What it can do beyond plain text."""
    most_tokens: int | None = None
    """Longest prompt and answer together; None for no limit."""
    most_logprobs: int = 20
    """Most alternatives to a token."""
    counter: TokenCounter = field(default_factory=TokenCounter)
    """How tokens are counted."""
    cache: PrefixCache = field(default_factory=PrefixCache)
    """Prompts that came before."""
    _replies: int = 0

    def model_list(self) -> dict[str, Any]:
        """What ``GET /v1/models`` answers."""
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "test", "max_model_len": self.most_tokens}
            for name in self.models
        ]
        return {"object": "list", "data": data}

    def reply(self, path: str, request: Any) -> Answered:
        """The good reply to a request. Errors: APIRefusal."""
        if path not in (CHAT, PLAIN):
            raise APIRefusal(404, f"there is nothing at {path}")
        if not isinstance(request, dict):
            raise APIRefusal(400, "the body is no JSON object")
        if request.get("model") not in self.models:
            raise APIRefusal(404, f"The model `{request.get('model')}` does not exist.", "model_not_found")
        if request.get("stream"):
            raise APIRefusal(400, "this server does not stream")
        seen = self._as_far_as_able(request)
        text = self._prompt(path, request)
        prompt = self.counter.counted(text)
        most = request.get("max_completion_tokens", request.get("max_tokens"))
        if self.most_tokens is not None and prompt.num_tokens + (most or 0) > self.most_tokens:
            raise APIRefusal(
                400,
                f"This model's maximum context length is {self.most_tokens} tokens. However, you requested "
                f"{prompt.num_tokens + (most or 0)} tokens.",
                "context_length_exceeded",
            )
        n = request.get("n") if Capability.SAMPLES in self.capabilities else 1
        replies = [self._cut(self.answerer.answer(seen), most, seen.get("stop")) for _ in range(n or 1)]
        make = self._chat_choice if path == CHAT else self._plain_choice
        choices = [make(index, reply, seen, text) for index, reply in enumerate(replies)]
        listed, prompt_listed = _lists_tokens(seen), path == PLAIN and _lists_prompt(seen)
        written = sum(len(self.counter.pieces(r.text)) if listed else self.counter.count(r.text) for r in replies)
        read = len(self.counter.pieces(text)) if prompt_listed else prompt.num_tokens
        return self._answered(path, str(request["model"]), choices, prompt, read, written)

    def _as_far_as_able(self, request: dict[str, Any]) -> dict[str, Any]:
        """The request without what the server cannot do."""
        lacking = {
            Capability.JSON_SCHEMA: ("response_format",),
            Capability.LOGPROBS: ("logprobs", "top_logprobs"),
            Capability.PROMPT_LOGPROBS: ("prompt_logprobs", "echo"),
            Capability.SEED: ("seed",),
        }
        gone = {name for able, names in lacking.items() if able not in self.capabilities for name in names}
        if request.get("echo") and Capability.PROMPT_LOGPROBS in self.capabilities:
            gone.discard("logprobs")  # an echo's are those of the prompt
        return {name: value for name, value in request.items() if name not in gone}

    def _prompt(self, path: str, request: dict[str, Any]) -> str:
        """The text that is read. Errors: APIRefusal."""
        if path == CHAT:
            messages = request.get("messages")
            if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
                raise APIRefusal(400, "messages must be a list of at least one message")
            return render(messages)
        prompt = request.get("prompt")
        if not isinstance(prompt, str):
            raise APIRefusal(400, "prompt must be a text")
        return prompt

    def _cut(self, reply: Reply, most: int | None, stop: Any) -> Reply:
        """The reply as far as stop texts and ``max_tokens`` let it come."""
        text, finish = reply.text, reply.finish_reason
        for end in [stop] if isinstance(stop, str) else stop or []:
            text = text.split(end, 1)[0]
        if most is not None and self.counter.count(text) > most:
            text, finish = self.counter.first(text, most), "length"
        return Reply(text, finish, reply.refusal, reply.odds)

    def _chat_choice(self, index: int, reply: Reply, request: dict[str, Any], prompt: str) -> dict[str, Any]:
        logprobs = None
        if _lists_tokens(request):
            most = min(int(request.get("top_logprobs") or 0), self.most_logprobs)
            entries = []
            for piece, odds in self._tokens(reply):
                top = [_entry(text, value) for text, value in filled(odds, piece, most)]
                entries.append({**_entry(piece, odds.logprob), "top_logprobs": top})
            logprobs = {"content": entries, "refusal": None}
        message = {
            "role": "assistant",
            "content": None if reply.refusal else reply.text,
            "refusal": reply.refusal,
        }
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reply.finish_reason}

    def _plain_choice(self, index: int, reply: Reply, request: dict[str, Any], prompt: str) -> dict[str, Any]:
        echo = bool(request.get("echo"))
        choice: dict[str, Any] = {
            "index": index,
            "text": (prompt if echo else "") + reply.text,
            "logprobs": None,
            "finish_reason": reply.finish_reason,
        }
        if _lists_tokens(request):
            most = min(int(request["logprobs"]), self.most_logprobs)
            tokens: list[tuple[str, TokenOdds | None]] = list(self._prompt_tokens(prompt)) if echo else []
            choice["logprobs"] = _token_lists([*tokens, *self._tokens(reply)], most)
        asked = request.get("prompt_logprobs")
        if asked is not None:
            most = min(int(asked), self.most_logprobs)
            choice["prompt_logprobs"] = [
                None if odds is None else _by_id(piece, odds, most) for piece, odds in self._prompt_tokens(prompt)
            ]
        return choice

    def _tokens(self, reply: Reply) -> Iterable[tuple[str, TokenOdds]]:
        """The answer's tokens with the odds of the last of their characters that has any."""
        at = 0
        for piece in self.counter.pieces(reply.text):
            end = at + len(piece)
            odds = CERTAIN
            for place in range(at, end) if reply.odds else ():
                odds = (reply.odds or {}).get(place, odds)
            yield piece, odds
            at = end

    def _prompt_tokens(self, prompt: str) -> Iterable[tuple[str, TokenOdds | None]]:
        """A plain prompt's tokens with their odds; the first has none."""
        pieces = self.counter.pieces(prompt)
        odds = self.answerer.prompt_odds(prompt, pieces)
        assert len(odds) == len(pieces)
        return zip(pieces, [None, *odds[1:]], strict=True)

    def _answered(
        self, path: str, model: str, choices: list[dict[str, Any]], prompt: Counted, read: int, written: int
    ) -> Answered:
        cached = self.cache.cached_tokens(prompt)
        self._replies += 1
        body = {
            "id": f"{'chatcmpl' if path == CHAT else 'cmpl'}-{self._replies}",
            "object": "chat.completion" if path == CHAT else "text_completion",
            "created": int(time.time()),
            "model": model,
            "choices": choices,
            "usage": {
                "prompt_tokens": read,
                "completion_tokens": written,
                "total_tokens": read + written,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        }
        return Answered(body, read, cached, written)


def _lists_tokens(request: dict[str, Any]) -> bool:
    """Whether the reply is to list the answer's tokens (0 alternatives, in completions, lists them too)."""
    asked = request.get("logprobs")
    return asked is not None and asked is not False


def _lists_prompt(request: dict[str, Any]) -> bool:
    """Whether the reply is to list the prompt's tokens."""
    return request.get("prompt_logprobs") is not None or (bool(request.get("echo")) and _lists_tokens(request))


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "surrogatepass"))}


def _token_lists(tokens: Sequence[tuple[str, TokenOdds | None]], most: int) -> dict[str, Any]:
    """The completions API's lists: tokens, log-probabilities, alternatives, offsets."""
    offsets, at = [], 0
    for piece, _ in tokens:
        offsets.append(at)
        at += len(piece)
    return {
        "tokens": [piece for piece, _ in tokens],
        "token_logprobs": [None if odds is None else odds.logprob for _, odds in tokens],
        "top_logprobs": [None if odds is None else dict(filled(odds, piece, most)) for piece, odds in tokens],
        "text_offset": offsets,
    }


def _by_id(piece: str, odds: TokenOdds, most: int) -> dict[str, Any]:
    """vLLM's alternatives to one prompt token by their ids; ids are made up, the token itself is always among them."""
    entries = filled(odds, piece, max(most, 1))
    if piece not in dict(entries):
        entries.append((piece, odds.logprob))
    return {
        str(sum(text.encode("utf-8", "surrogatepass")) * 1000 + rank): {
            "logprob": value,
            "rank": rank,
            "decoded_token": text,
        }
        # the prompt's own token comes first, as vLLM writes it
        for rank, (text, value) in sorted(enumerate(entries, 1), key=lambda item: item[1][0] != piece)
    }
