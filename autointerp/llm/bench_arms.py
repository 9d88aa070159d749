"""The ways to a server that ``bench`` compares, each in a process of its own.

    python -m autointerp.llm.bench_arms ARM URL CONCURRENCY

reads a number of calls from each line of its input, makes ``CONCURRENCY`` calls that do not count, then that many that do, and
prints one JSON line: calls, seconds, seconds of the CPU over all threads. In the end, without further input, it says what its ledger has.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sae_core.errors import StoreError

MODEL = "test"
SYSTEM_BYTES, USER_BYTES = 900, 4_100
"""Size of a prompt: about that of a detection call, 5 kB or 1,200 tokens, a fifth of it the same in every call."""
MAX_TOKENS = 300
ANSWER = '{"label": "' + "words that stand for what the model would have said of it " * 4 + '"}'
"""About 60 tokens."""
CALLS_A_LATENT = 8

Call = Callable[[int], Awaitable[None]]
"""Makes the call of a number and looks at its answer."""


class Prompts:
    """Realistic prompts that are all different, at next to no cost."""

    def __init__(self, seed: str) -> None:
        rng = random.Random(seed)
        words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(60_000)]
        text = " ".join(words)
        self.system = text[:SYSTEM_BYTES]
        self._text = text[SYSTEM_BYTES:]

    def user(self, number: int) -> str:
        """The part that changes."""
        label = f'Label: "label number {number}"\n'
        at = number * 37 % (len(self._text) - USER_BYTES)
        return label + self._text[at : at + USER_BYTES - len(label)]

    def body(self, number: int) -> dict[str, Any]:
        """A whole request."""
        messages = [{"role": "system", "content": self.system}, {"role": "user", "content": self.user(number)}]
        return {"model": MODEL, "messages": messages, "temperature": 0.0, "max_tokens": MAX_TOKENS}


def _checked(text: str | None) -> None:
    if text != ANSWER:
        raise AssertionError(f"the server answered {text!r}")


async def _rounds(call: Call, concurrency: int, callers: int | None = None) -> None:
    """Do what the input asks until it ends, by ``callers`` at once (as many as ``concurrency`` unless said)."""
    number = 0

    async def together(count: int) -> None:
        nonlocal number
        last = number + count

        async def worker() -> None:
            nonlocal number
            while number < last:
                number += 1
                await call(number - 1)

        await asyncio.gather(*(worker() for _ in range(callers or concurrency)))

    while line := await asyncio.to_thread(sys.stdin.readline):
        # connections that were idle are gone by now
        await together(concurrency)
        count = int(line)
        cpu_s, begin_s = time.process_time(), time.perf_counter()
        await together(count)
        seconds, cpu_s = time.perf_counter() - begin_s, time.process_time() - cpu_s
        print(json.dumps({"calls": count, "seconds": seconds, "cpu_s": cpu_s}), flush=True)


async def _ours(url: str, concurrency: int, prompts: Prompts) -> None:
    """A session over the openai endpoint, with a store on disk, ledger and budget."""
    from autointerp.llm.endpoints.openai import OpenAIEndpoint
    from autointerp.llm.pricing import Budget
    from autointerp.llm.protocol import CompletionRequest, Message
    from autointerp.llm.session import LLMSession
    from autointerp.store import open_store
    from autointerp.store.ledger import spend
    from autointerp.store.models import Run
    from autointerp.store.opening import sqlite_url

    endpoint = OpenAIEndpoint(
        model=MODEL,
        base_url=url,
        max_concurrency=concurrency,
        usd_per_million_input_tokens=0.1,
        usd_per_million_output_tokens=0.4,
    )
    with tempfile.TemporaryDirectory(prefix="autointerp-bench-") as folder:
        store = open_store(sqlite_url(Path(folder) / "autointerp.db"))
        run = Run(id="bench-1", name="bench", digest="0" * 64, ordinal=1, config={}, state="running", folder=folder)
        run.code_version = ""
        store.create_run(run)
        budget = Budget(tokens=10**12, usd=10**6)
        session = LLMSession(endpoint, endpoint.open(), frozenset(), store, "bench-1", "bench", budget, "bench")
        system = Message(role="system", content=prompts.system)
        calls = 0

        async def call(number: int) -> None:
            nonlocal calls
            request = CompletionRequest(
                messages=(system, Message(role="user", content=prompts.user(number))), max_tokens=MAX_TOKENS
            )
            llm = session.bound("bench", number // CALLS_A_LATENT, "detection")
            answer = await llm.ask(request, lambda completion: completion.text)
            _checked(answer.value)
            calls += 1

        try:
            # as in a run, more calls wait than the endpoint takes, and the session lets through what it may: a caller whose
            # reply is being stored would leave its place empty
            await _rounds(call, concurrency, 2 * concurrency)
        finally:
            await session.close()
        entered = spend(store, "bench-1")
        store.close()
        if (entered.calls, entered.lost) != (calls, 0):
            raise StoreError(f"{calls} calls were answered, and the ledger has {entered.calls}, {entered.lost} lost")
        print(json.dumps(entered._asdict()), flush=True)


async def _openai(url: str, concurrency: int, prompts: Prompts, *, aiohttp: bool) -> None:
    """A bare openai client in a loop."""
    import openai

    transport = openai.DefaultAioHttpClient() if aiohttp else None
    async with openai.AsyncOpenAI(api_key="-", base_url=url, max_retries=0, http_client=transport) as client:

        async def call(number: int) -> None:
            completion = await client.chat.completions.create(**prompts.body(number))
            _checked(completion.choices[0].message.content)

        await _rounds(call, concurrency)


async def _aiohttp(url: str, concurrency: int, prompts: Prompts) -> None:
    """A bare HTTP client."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def call(number: int) -> None:
            async with client.post(f"{url}/chat/completions", json=prompts.body(number)) as response:
                body = json.loads(await response.read())
            _checked(body["choices"][0]["message"]["content"])

        await _rounds(call, concurrency)


ARMS: dict[str, Callable[[str, int, Prompts], Awaitable[None]]] = {
    "autointerp": _ours,
    "openai": lambda url, concurrency, prompts: _openai(url, concurrency, prompts, aiohttp=False),
    "openai_aiohttp": lambda url, concurrency, prompts: _openai(url, concurrency, prompts, aiohttp=True),
    "aiohttp": _aiohttp,
}
"""Ways to a server by name."""


async def _main(arm: str, url: str, concurrency: int) -> None:
    await ARMS[arm](url, concurrency, Prompts(arm))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
