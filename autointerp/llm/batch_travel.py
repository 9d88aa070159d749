"""Requests and the batches in which they travel."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from autointerp.llm.batch_provider import RemoteBatch, failure_of
from autointerp.llm.batch_results import BatchResults
from autointerp.llm.call_errors import CallError, Transient


class BatchSettings(NamedTuple):
    """How batches are made and waited for."""

    window_s: float
    """How long the first request waits for others."""
    most_requests: int
    """In a batch."""
    most_bytes: int
    """In a batch's file."""
    poll_s: float
    """Time between looks at a batch."""
    completion_window: str
    """Time that the provider is given, in its own words."""


@dataclass(eq=False, slots=True)
class Ticket:
    """One request and those who wait for its answer."""

    custom_id: str
    route: str
    line: bytes
    """Of the batch's file."""
    reply: asyncio.Future[str]
    waiting: int = 0
    batch: SentBatch | None = None
    """The batch in which the provider has it, or may have it."""
    taken: bool = False
    """Whether it is in a file that is on its way: a batch may begin of which nobody here hears."""
    ended: SentBatch | None = None
    """The batch that gave the answer."""
    elsewhere: list[SentBatch] = field(default_factory=list)
    """Batches of earlier processes that hold the request, the latest last."""

    def answer(self, outcome: str | BaseException) -> None:
        """End the wait."""
        if self.reply.done():
            return
        if isinstance(outcome, str):
            self.reply.set_result(outcome)
        else:
            self.reply.set_exception(outcome)
            self.reply.exception()  # whoever waited may be gone: nothing to be warned of


@dataclass(eq=False, slots=True)
class SentBatch:
    """One batch that is under way, or has ended."""

    token: str
    custom_ids: tuple[str, ...]
    """In the order of the file."""
    planned_at: float
    batch_id: str = ""
    adopted: bool = False
    """Whether an earlier process sent it."""
    tickets: dict[str, Ticket] = field(default_factory=dict)
    """Requests that wait for it."""
    watched: bool = False
    results: BatchResults | None = None
    """Once it has ended."""
    rest: dict[int | None, CallError] = field(default_factory=dict)
    """Once it has ended: what became of requests without an answer, by line, those of no line under None."""


def custom_id_of(route: str, body: dict[str, Any], sample: int) -> str:
    """Name of a request in all batches: a hash of all that is sent and of the draw."""
    text = json.dumps([route, body, sample], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def rest_of(remote: RemoteBatch | None) -> dict[int | None, CallError]:
    """What became of requests that an ended batch says nothing about."""
    if remote is None:
        return {None: Transient("the batch's server knows nothing of the batch", maybe_paid=True)}
    if remote.status == "failed":
        return failure_of(remote.complaints)
    if remote.status == "completed":
        return {None: Transient("the batch was completed without a word about this request", maybe_paid=True)}
    return {None: Transient(f"the batch was {remote.status} before it came to this request")}
