"""A client that is a script, an endpoint with prices, and a store with a run: what the tests of the way to a server share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import func, select

from autointerp.llm.endpoints.base import Endpoint
from autointerp.llm.pricing import Budget
from autointerp.llm.protocol import Capability, CompletionRequest, LLMClient, Message
from autointerp.llm.session import CallPlace, LLMSession
from autointerp.store import LabelStore, open_store
from autointerp.store.calls import account
from autointerp.store.models import LLMCall, Run
from autointerp.store.opening import sqlite_url

Script = Callable[[CompletionRequest, int], Awaitable[str]]
"""The raw reply to a request, which is the n-th that the client got, from 0; or what it raises."""
PLACE = CallPlace("s", 7, "detection")
ALL = frozenset(Capability)


class FakeEndpoint(Endpoint):
    """An endpoint whose client is given by the test."""

    kind: Literal["fake"] = "fake"
    model: str = "judge"
    usd_per_million_input_tokens: float | None = 1.0
    usd_per_million_output_tokens: float | None = 4.0

    def open(self) -> LLMClient:
        raise NotImplementedError


class ScriptedServer:
    """Implements ``LLMClient``; ``sent`` has every request that arrived and when."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.sent: list[CompletionRequest] = []
        self.times: list[float] = []
        self.bound: list[bool] = []
        self.busy = self.peak = 0
        self.closed = False

    async def send(self, request: CompletionRequest, deadline_s: float, *, bound: bool) -> str:
        number = len(self.sent)
        self.sent.append(request)
        self.times.append(asyncio.get_running_loop().time())
        self.bound.append(bound)
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        try:
            return await self.script(request, number)
        finally:
            self.busy -= 1

    async def close(self) -> None:
        self.closed = True


def body(text: str = "yes", *, prompt: int = 100, answer: int = 10, finish: str = "stop", **message: Any) -> str:
    """A reply of the chat API."""
    return json.dumps(
        {
            "model": "judge-1",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish,
                    "message": {"role": "assistant", "content": text, **message},
                }
            ],
            "usage": {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer},
        }
    )


def ask(number: int = 0, *, max_tokens: int = 50, **fields: Any) -> CompletionRequest:
    """A request that differs by its number."""
    messages = (Message(role="system", content="Judge."), Message(role="user", content=f"Item {number}?"))
    return CompletionRequest(messages=messages, max_tokens=max_tokens, **fields)


def after(seconds: float, text: str = "yes", **fields: Any) -> Script:
    """Answers everything alike after some time."""

    async def script(request: CompletionRequest, number: int) -> str:
        await asyncio.sleep(seconds)
        return body(text, **fields)

    return script


def new_store(path: Path, run_id: str = "r-1", ordinal: int = 1) -> LabelStore:
    """A store with a run, at ``path``."""
    store = open_store(sqlite_url(path))
    add_run(store, run_id, ordinal)
    return store


def add_run(store: LabelStore, run_id: str, ordinal: int = 1) -> None:
    """Add a run."""
    store.create_run(
        Run(id=run_id, name="n", digest="d", ordinal=ordinal, config={}, state="running", folder="/x", code_version="0")
    )


def new_session(
    store: LabelStore,
    server: ScriptedServer,
    *,
    endpoint: Endpoint | None = None,
    capabilities: frozenset[Capability] = ALL,
    scope: str = "r-1",
    budget: Budget | None = None,
    owner: str = "me",
    run_id: str = "r-1",
    asks_again: bool = False,
) -> LLMSession:
    """A session on the running loop's clock."""
    return LLMSession(
        endpoint or FakeEndpoint(),
        server,
        capabilities,
        store,
        run_id,
        scope,
        budget or Budget(),
        owner,
        asks_again=asks_again,
        clock=asyncio.get_running_loop().time,
    )


def books_balance(store: LabelStore, run_id: str = "r-1") -> tuple[int, int]:
    """Tokens spent and reserved; checks that what is spent is the sum over the calls, in tokens and in money."""
    with store.reading() as connection:
        standing = account(connection, run_id, lock=False)
        tokens, nano_usd = connection.execute(
            select(
                func.coalesce(func.sum(LLMCall.input_tokens + LLMCall.output_tokens), 0),
                func.coalesce(func.sum(LLMCall.cost_nano_usd), 0),
            ).where(LLMCall.run_id == run_id)
        ).one()
    assert tuple(standing.spent) == (tokens, nano_usd)
    return standing.spent.tokens, standing.reserved.tokens


def outcomes(store: LabelStore, run_id: str = "r-1") -> dict[str, int]:
    """Calls of the ledger by outcome."""
    with store.reading() as connection:
        rows = connection.execute(
            select(LLMCall.outcome, func.count()).where(LLMCall.run_id == run_id).group_by(LLMCall.outcome)
        )
        return {str(outcome): int(number) for outcome, number in rows}
