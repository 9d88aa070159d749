"""What a server can do, found by its answers: many take a parameter and do nothing with it (ECOSYSTEM 2).

About ten calls of a few tokens each, before anything else is spent. What a server refuses, or fails at, it lacks; that
it is there at all and takes our key is asked with a plain call, first and again where a later one fails.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from autointerp.llm.call_errors import Denied, InvalidReply, RateLimited, Rejected, Transient
from autointerp.llm.http_failures import false_success
from autointerp.llm.protocol import Capability, Completion, CompletionRequest, LLMClient, Message, TokenLogprob
from autointerp.llm.validation import read_reply

_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer", "enum": [7]}},
    "required": ["answer"],
    "additionalProperties": False,
}
_SENTENCE = "The capital of France is Paris, and that of Spain is Madrid."
_LEAST_TOKENS = 8
"""Fewer are not all tokens of the sentence, whatever the tokenizer."""
_TRIES = 3
_WAIT_S = 1.0

Sleep = Callable[[float], Awaitable[None]]


@runtime_checkable
class TakesParameters(Protocol):
    """A client that can send parameters which no request of ours has."""

    async def send_with(
        self, request: CompletionRequest, deadline_s: float, extra: Mapping[str, Any], *, bound: bool = False
    ) -> str:
        """As ``LLMClient.send``, with parameters of the API that win over all others."""
        ...


async def probe(client: LLMClient, deadline_s: float, *, sleep: Sleep = asyncio.sleep) -> frozenset[Capability]:
    """What the server behind ``client`` was found to do; each call may take ``deadline_s``.

    Errors: CallError where the server does not even answer a plain call: Denied (key, model), Transient (nobody there),
    RateLimited (for longer than ``deadline_s``).
    """
    probing = _Probing(client, deadline_s, sleep)
    await probing.plain()
    checks = {
        Capability.JSON_SCHEMA: probing.json_schema,
        Capability.SAMPLES: probing.samples,
        Capability.SEED: probing.seed,
        # last, and one after the other: there are servers that these bring down
        Capability.LOGPROBS: probing.logprobs,
        Capability.PROMPT_LOGPROBS: probing.prompt_logprobs,
    }
    found = set()
    for capability, check in checks.items():
        try:
            if await check():
                found.add(capability)
        except (Rejected, InvalidReply):
            continue
        except (Transient, Denied):
            # lacked, if the server is well otherwise: a missing route is a 404, a -inf in a reply a 500
            await probing.plain()
    return frozenset(found)


class _Probing:
    """The calls. Each check is true where the answers show the capability."""

    def __init__(self, client: LLMClient, deadline_s: float, sleep: Sleep) -> None:
        self._client, self._deadline_s, self._sleep = client, deadline_s, sleep

    async def plain(self) -> None:
        """An answer to a plain question, whatever it is."""
        await self._ask(_chat("Say hello.", max_tokens=16))

    async def json_schema(self) -> bool:
        """Nothing in the question leads to 7 but the schema."""
        reply = await self._ask(_chat("Say hello.", max_tokens=128, json_schema=_SCHEMA), bound=True)
        said = "".join(reply.text.split())
        if reply.finish_reason == "length":
            # bound models may write white space between the parts until they are cut off
            return said.startswith("{") and '{"answer":7}'.startswith(said)
        try:
            return bool(json.loads(said) == {"answer": 7})
        except (ValueError, RecursionError):
            return False

    async def samples(self) -> bool:
        """Two choices where two are asked for."""
        if not isinstance(self._client, TakesParameters):
            return False
        client = self._client
        request = _chat("Say hello.", max_tokens=4, temperature=1.0)
        body = await self._patiently(lambda: client.send_with(request, self._deadline_s, {"n": 2}))
        read_reply(body, request)
        return len(json.loads(body)["choices"]) == 2

    async def seed(self) -> bool:
        """The same letters for the same seed, others for another."""
        texts: list[str] = []
        for seed in (1, 1, 2, 3):
            if len(set(texts)) < 2:
                asked = _chat("Write twelve random letters.", max_tokens=16, temperature=1.0, seed=seed)
                texts.append((await self._ask(asked)).text)
        return texts[0] == texts[1] and len(set(texts)) > 1

    async def logprobs(self) -> bool:
        """The answer's tokens with several alternatives, the likeliest of which the answer holds."""
        reply = await self._ask(_chat("Say hello.", max_tokens=4, top_logprobs=5))
        first = next((token for token in reply.logprobs if token.token), None)
        return first is not None and _has_alternatives(first) and all(map(_sums_to_one_at_most, reply.logprobs))

    async def prompt_logprobs(self) -> bool:
        """All tokens of a plain text with alternatives; whether the numbers are right cannot be seen."""
        reply = await self._ask(CompletionRequest(text=_SENTENCE, max_tokens=0, prompt_logprobs=5))
        given = [token for token in reply.prompt_logprobs if token is not None]
        enough = len(given) >= _LEAST_TOKENS
        return enough and all(_has_alternatives(token) and _sums_to_one_at_most(token) for token in given)

    async def _ask(self, request: CompletionRequest, *, bound: bool = False) -> Completion:
        body = await self._patiently(lambda: self._client.send(request, self._deadline_s, bound=bound))
        return read_reply(body, request)

    async def _patiently(self, send: Callable[[], Awaitable[str]]) -> str:
        """The reply; waits as long as the deadline where the server asks for it, and tries failures again."""
        waited_s, tries = 0.0, 0
        while True:
            begun_s = time.monotonic()
            try:
                body = await send()
                failure = false_success(body, key_name="the key")
                if failure is not None:
                    raise failure
                return body
            except RateLimited as limited:
                wait_s = _WAIT_S if limited.retry_after_s is None else max(limited.retry_after_s, 0.01)
                waited_s += wait_s
                if waited_s > self._deadline_s:
                    raise
            except Transient:
                tries += 1
                if tries == _TRIES or time.monotonic() - begun_s > self._deadline_s / 2:
                    raise
                wait_s = _WAIT_S
            await self._sleep(wait_s)


def _chat(text: str, **parameters: Any) -> CompletionRequest:
    return CompletionRequest(messages=(Message(role="user", content=text),), **parameters)


def _has_alternatives(token: TokenLogprob) -> bool:
    return len(token.top) >= 2


def _sums_to_one_at_most(token: TokenLogprob) -> bool:
    return math.fsum(math.exp(logprob) for logprob in token.top.values()) < 1.01
