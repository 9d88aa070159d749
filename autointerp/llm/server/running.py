"""The test server itself: API, faults, latency, ledger, in an event loop; and the same in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from autointerp.llm.protocol import Capability
from autointerp.llm.server.answers import Answerer, PlainAnswerer
from autointerp.llm.server.api import API, MODELS, APIRefusal
from autointerp.llm.server.counting import TokenCounter
from autointerp.llm.server.faults import FaultRule, FaultScript
from autointerp.llm.server.http import Exchange, HTTPServer
from autointerp.llm.server.ledger import Call, Ledger, authorization_hash, prompt_text
from autointerp.llm.server.spoiling import SPOILED, dumps
from autointerp.llm.server.wire_faults import REFUSED, WIRE


class LLMServer:
    """An OpenAI-compatible server with an answerer in the place of a model. Lives in one event loop."""

    def __init__(
        self,
        answerer: Answerer | None = None,
        *,
        faults: Iterable[FaultRule] = (),
        ledger: Path | str | None = None,
        latency_s: float = 0.0,
        max_concurrency: int | None = None,
        busy_retry_after: str | None = "1",
        models: tuple[str, ...] = ("test",),
        capabilities: Iterable[Capability] = tuple(Capability),
        most_tokens: int | None = None,
        tokenizer: str | None = None,
        api_key: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """``latency_s``: time from a request to its answer. Above ``max_concurrency`` requests at once it answers 429.

        ``most_tokens``: longest prompt and answer. ``tokenizer``: path of a tokenizer.json to count by. ``api_key``: the
        only key that is taken; None for any.
        """
        self.api = API(
            answerer if answerer is not None else PlainAnswerer(),
            models=models,
            capabilities=frozenset(capabilities),
            most_tokens=most_tokens,
            counter=TokenCounter(tokenizer),
        )
        self.script = FaultScript(faults)
        self.ledger = Ledger(ledger)
        self.latency_s = latency_s
        self.max_concurrency = max_concurrency
        self.busy_retry_after = busy_retry_after
        self.most_in_flight = 0
        """Most requests that were under way at once."""
        self.http = HTTPServer(self._handle, host, port)
        self._api_key = None if api_key is None else f"Bearer {api_key}"
        self._in_flight = 0
        self._ordinal = 0

    @property
    def url(self) -> str:
        """Base URL for clients."""
        return f"http://{self.http.host}:{self.http.port}/v1"

    async def start(self) -> None:
        """Listen. Errors: OSError where the port is taken."""
        await self.http.start()

    async def stop(self) -> None:
        """Cut everything."""
        await self.http.stop()
        self.ledger.close()

    async def _handle(self, exchange: Exchange) -> None:
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            await self._answer(exchange, time.time(), asyncio.get_running_loop().time())
        finally:
            self._in_flight -= 1

    async def _answer(self, exchange: Exchange, arrived: float, begin: float) -> None:
        ordinal, self._ordinal = self._ordinal, self._ordinal + 1
        asked = exchange.request
        try:
            request: Any = json.loads(asked.body) if asked.body else None
        except (ValueError, RecursionError):
            request = None
        authorization = asked.headers.get("authorization")

        def enter(outcome: str, tokens: tuple[int, int, int] = (0, 0, 0), *, billed: bool = False) -> None:
            self.ledger.add(
                Call(
                    ordinal,
                    arrived,
                    asked.path,
                    authorization_hash(authorization),
                    request,
                    outcome,
                    *tokens,
                    billed=billed,
                )
            )

        if self.max_concurrency is not None and self._in_flight > self.max_concurrency:
            enter("busy")
            headers = [("Retry-After", self.busy_retry_after)] if self.busy_retry_after is not None else []
            error = {"message": "Too many requests at once", "type": "requests", "code": "rate_limit_exceeded"}
            await exchange.send_json(429, {"error": error}, headers)
            return
        rule = self.script.choose(ordinal, asked.body, prompt_text(request))
        if rule is not None and rule.fault in REFUSED:
            enter(rule.fault)
            await REFUSED[rule.fault](exchange, rule)
            return
        try:
            if self._api_key is not None and authorization != self._api_key:
                raise APIRefusal(401, "Incorrect API key provided.", "invalid_api_key")
            if asked.path == MODELS and asked.method == "GET":
                enter("ok")
                await exchange.send_json(200, self.api.model_list())
                return
            answered = self.api.reply(asked.path, request)
        except APIRefusal as refusal:
            enter("invalid")
            await exchange.send_json(refusal.status, refusal.body)
            return
        tokens = (answered.prompt_tokens, answered.cached_tokens, answered.completion_tokens)
        wait_s = self.latency_s - (asyncio.get_running_loop().time() - begin)
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        if exchange.reader.at_eof():
            exchange.keep_alive = False
            enter("gone", tokens, billed=True)
            return
        enter("ok" if rule is None else rule.fault, tokens, billed=True)
        body = dumps(answered.body)
        if rule is None:
            await exchange.send(200, body)
        elif rule.fault in SPOILED:
            content_type = "text/html" if rule.fault == "html" else "application/json"
            await exchange.send(200, SPOILED[rule.fault](answered.body), content_type=content_type)
        else:
            if rule.fault == "die":
                await self.http.stop()
            await WIRE[rule.fault](exchange, body, rule)


class RunningServer:
    """An LLMServer in a thread with an event loop of its own: ``with RunningServer(answerer) as server: server.url``."""

    def __init__(self, answerer: Answerer | None = None, **settings: Any) -> None:
        """``settings``: those of LLMServer."""
        self.server = LLMServer(answerer, **settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test LLM server", daemon=True)

    @property
    def url(self) -> str:
        """Base URL for clients."""
        return self.server.url

    @property
    def port(self) -> int:
        """Port, which another server may take after this one."""
        return self.server.http.port

    @property
    def calls(self) -> list[Call]:
        """All calls so far, by the time of their outcome."""
        return list(self.server.ledger.calls)

    def die(self) -> None:
        """Close the port and cut all connections, as a kill does; the ledger stays."""
        self._do(self.server.http.stop())

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self.server.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self.server.stop())
        # callbacks of the tasks that were cancelled
        self._do(asyncio.sleep(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if error is None and self.server.http.errors:
            raise self.server.http.errors[0]

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()
