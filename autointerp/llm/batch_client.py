"""Requests that wait for company, go out as one batch, and come back hours later in any order.

A request is parked for a while, then sent with all others in one file. Before the provider hears of a batch its token and
requests are in the journal, afterwards its id; so after a crash the next process finds what this one sent, and a request that
is in one of those batches waits for it instead of being sent, and paid, again.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from autointerp.llm.batch_journal import BatchJournal, BatchRecord
from autointerp.llm.batch_provider import TERMINAL, BatchProvider, RemoteBatch
from autointerp.llm.batch_results import BatchResults
from autointerp.llm.batch_travel import BatchSettings, SentBatch, Ticket, custom_id_of, rest_of
from autointerp.llm.call_errors import CallError, Denied, InvalidReply, RateLimited, Rejected, Transient
from autointerp.llm.protocol import CompletionRequest, Journey
from sae_core.errors import StoreError

_LOOKS = 3
"""Times that the provider's list is read for a batch that may or may not have been made."""
_CLOCKS_S = 3600.0
"""How far the provider's clock may be behind ours."""


class BatchClient:
    """An ``LLMClient`` whose calls go out in batches. Belongs to one event loop."""

    def __init__(
        self,
        provider: BatchProvider,
        journal: BatchJournal,
        settings: BatchSettings,
        body_of: Callable[[CompletionRequest, bool], tuple[str, dict[str, Any]]],
        folder: Path | None = None,
    ) -> None:
        """``body_of``: route and body of a request, the flag saying whether it is bound to its schema.

        ``folder``: where temporary files find room.
        """
        self._provider, self._journal, self._settings = provider, journal, settings
        self._body_of = body_of
        self._folder = folder
        self._tickets: dict[str, Ticket] = {}
        self._parked: dict[str, Ticket] = {}
        self._parked_bytes = 0
        self._full = asyncio.Event()
        self._collecting = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._earlier: dict[str, list[SentBatch]] = {}
        self._known: set[str] = set()
        self._read = -1
        self._loading = asyncio.Lock()
        self._open_results: set[BatchResults] = set()

    async def send(self, request: CompletionRequest, deadline_s: float, *, bound: bool) -> str:
        """The raw reply, after as long as a batch takes. Errors: CallError."""
        return await self.send_noting(request, deadline_s, Journey(), bound=bound)

    async def send_noting(self, request: CompletionRequest, deadline_s: float, journey: Journey, *, bound: bool) -> str:
        """See ``protocol.OutlivingClient``. Errors: CallError."""
        route, body = self._body_of(request, bound)
        custom_id = custom_id_of(route, body, request.sample)
        ticket: Ticket | None = None
        try:
            async with asyncio.timeout(deadline_s):
                earlier = await self._earlier_batches()
                ticket = self._tickets.get(custom_id)
                fresh = ticket is None
                if ticket is None:
                    # half a character, out of a broken corpus, becomes a question mark
                    data = {"custom_id": custom_id, "method": "POST", "url": f"/v1{route}", "body": body}
                    line = json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
                    if len(line) > self._settings.most_bytes:
                        raise Rejected(
                            f"the request has {len(line)} bytes, a batch may have {self._settings.most_bytes}"
                        )
                    ticket = Ticket(custom_id, route, line, asyncio.get_running_loop().create_future())
                    ticket.elsewhere = earlier.pop(custom_id, [])
                    self._tickets[custom_id] = ticket
                ticket.waiting += 1
                try:
                    if fresh:
                        self._place(ticket)
                    return await asyncio.shield(ticket.reply)
                finally:
                    ticket.waiting -= 1
                    if not ticket.waiting:
                        self._drop(ticket)
        except TimeoutError:
            maybe_paid = ticket is not None and (ticket.taken or ticket.batch is not None)
            raise Transient(
                f"no batch answered within {deadline_s:g} s", timed_out=True, maybe_paid=maybe_paid
            ) from None
        finally:
            if ticket is not None:
                journey.answered = ticket.ended is not None
                journey.sent = journey.answered or ticket.taken or ticket.batch is not None
                if ticket.ended is not None and ticket.ended.adopted:
                    journey.earlier_at = ticket.ended.planned_at

    async def close(self) -> None:
        """Stop waiting; batches that are under way stay so, and the next process takes them over."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for ticket in list(self._tickets.values()):
            ticket.answer(Transient("the client was closed", maybe_paid=ticket.batch is not None))
        for results in self._open_results:
            results.close()
        await self._provider.close()

    async def _earlier_batches(self) -> dict[str, list[SentBatch]]:
        """Batches of other processes by the requests in them: of earlier ones, and of such as died while this one runs."""
        async with self._loading:
            length = self._journal.length()
            if length != self._read:
                for record in await asyncio.to_thread(self._journal.load):
                    if record.state == "lost" or record.token in self._known:
                        continue
                    self._known.add(record.token)
                    batch = SentBatch(record.token, record.custom_ids, record.planned_at, record.batch_id, adopted=True)
                    for custom_id in record.custom_ids:
                        self._earlier.setdefault(custom_id, []).append(batch)
                self._read = length
        return self._earlier

    def _place(self, ticket: Ticket) -> None:
        """Let a request wait for a batch that holds it, or for the next one that is sent."""
        if ticket.elsewhere:
            batch = ticket.batch = ticket.elsewhere.pop()
            batch.tickets[ticket.custom_id] = ticket
            if batch.results is not None:
                self._settle(batch)
            elif not batch.watched:
                self._start(self._watch(batch))
            return
        ticket.batch = None
        self._parked[ticket.custom_id] = ticket
        self._parked_bytes += len(ticket.line)
        if len(self._parked) >= self._settings.most_requests or self._parked_bytes >= self._settings.most_bytes:
            self._full.set()
        if not self._collecting:
            self._collecting = True
            self._start(self._collect())

    def _drop(self, ticket: Ticket) -> None:
        """Nobody waits for the request any more; who asks again finds the batch that it is in."""
        self._tickets.pop(ticket.custom_id, None)
        if self._parked.pop(ticket.custom_id, None) is not None:
            self._parked_bytes -= len(ticket.line)
        elif ticket.batch is not None and not ticket.reply.done():
            ticket.batch.tickets.pop(ticket.custom_id, None)
            self._earlier[ticket.custom_id] = [*ticket.elsewhere, ticket.batch]

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended_task)

    def _ended_task(self, task: asyncio.Task[None]) -> None:
        """A task that fails otherwise than with a CallError (a full disk, a bug of ours) fails all who wait."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            for ticket in list(self._tickets.values()):
                ticket.answer(error)

    async def _collect(self) -> None:
        """Wait for company, then send all that is parked."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._full.wait(), self._settings.window_s)
        parked, self._parked, self._parked_bytes = list(self._parked.values()), {}, 0
        for ticket in parked:
            ticket.taken = True
        self._full.clear()
        self._collecting = False
        for group in self._groups(parked):
            self._start(self._submit(group))

    def _groups(self, tickets: Sequence[Ticket]) -> list[list[Ticket]]:
        """Requests of one route each, within the provider's limits."""
        groups: list[list[Ticket]] = []
        for route in dict.fromkeys(ticket.route for ticket in tickets):
            group: list[Ticket] = []
            size = 0
            for ticket in tickets:
                if ticket.route != route:
                    continue
                too_large = size + len(ticket.line) > self._settings.most_bytes
                if group and (too_large or len(group) >= self._settings.most_requests):
                    groups.append(group)
                    group, size = [], 0
                group.append(ticket)
                size += len(ticket.line)
            groups.append(group)
        return groups

    async def _submit(self, group: list[Ticket]) -> None:
        """Plan a batch, send it, keep its id, and watch it."""
        batch = SentBatch(uuid.uuid4().hex, tuple(t.custom_id for t in group), time.time())
        batch.tickets = {ticket.custom_id: ticket for ticket in group}
        self._known.add(batch.token)
        begun = False
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                file.writelines(ticket.line for ticket in group)
                file.seek(0)
                uploaded = await self._provider.upload(f"{batch.token}.jsonl", file)
            await self._save(batch, "planned")
            for ticket in group:
                ticket.batch, ticket.taken = batch, False
            try:
                begun = True
                window, scope = self._settings.completion_window, self._journal.scope
                remote = await self._provider.create(uploaded, group[0].route, window, scope, batch.token)
            except (Denied, RateLimited, Rejected):
                begun = False
                await self._save(batch, "lost")
                raise
            except Transient:
                pass  # it may have been made: watching begins with a look for it
            else:
                batch.batch_id = remote.id
                await self._save(batch, "created")
        except CallError as error:
            for ticket in group:
                ticket.batch, ticket.taken = batch if begun else None, False
                ticket.answer(error)
            return
        await self._watch(batch)

    async def _save(self, batch: SentBatch, state: Any) -> None:
        record = BatchRecord(
            token=batch.token,
            batch_id=batch.batch_id,
            state=state,
            custom_ids=batch.custom_ids,
            planned_at=batch.planned_at,
        )
        try:
            await asyncio.to_thread(self._journal.save, record)
        except StoreError as error:
            raise Denied(str(error)) from error

    async def _watch(self, batch: SentBatch) -> None:
        """Wait for the end of a batch and give out what it answered."""
        batch.watched = True
        results = BatchResults(batch.custom_ids, self._folder, self._provider.without_key)
        self._open_results.add(results)
        try:
            remote = await self._ended(batch)
            if remote is not None:
                await self._fetch(remote, results)
            if remote is None or remote.status == "failed":
                await self._save(batch, "lost")  # nothing in it was worked, so nobody need look for it again
        except CallError as error:  # nothing more can be learned until a person has seen to it
            batch.watched = False
            for ticket in batch.tickets.values():
                if isinstance(error, InvalidReply):  # its answers are there, and of no use
                    ticket.batch, ticket.ended = None, batch
                ticket.answer(error)
            batch.tickets.clear()
            return
        batch.results, batch.rest = results, rest_of(remote)
        self._settle(batch)
        if remote is not None and remote.input_file:
            with suppress(CallError):  # its account keeps a file more
                await self._provider.forget(remote.input_file)

    async def _ended(self, batch: SentBatch) -> RemoteBatch | None:
        """The batch in its last state, None where there is none. Errors: Denied, Rejected."""
        looks = 0
        while True:
            wait_s = self._settings.poll_s
            try:
                if batch.batch_id:
                    remote = await self._provider.retrieve(batch.batch_id)
                    if remote is None or remote.status in TERMINAL:
                        return remote
                else:
                    looks += 1
                    found = await self._provider.find(self._journal.scope, batch.token, batch.planned_at - _CLOCKS_S)
                    if found is not None:
                        batch.batch_id = found.id
                        await self._save(batch, "created")
                        continue
                    if looks >= _LOOKS:
                        return None
            except RateLimited as error:
                wait_s = max(wait_s, error.retry_after_s or 0.0)
            except Transient:
                pass  # the batch goes on without us
            await asyncio.sleep(wait_s)

    async def _fetch(self, remote: RemoteBatch, results: BatchResults) -> None:
        """Bring the result files here. Errors: Denied, Rejected, InvalidReply."""
        for name in remote.files:
            while True:
                try:
                    await results.add(self._provider.download(name))
                    break
                except (RateLimited, Transient):
                    await asyncio.sleep(self._settings.poll_s)

    def _settle(self, batch: SentBatch) -> None:
        """Answer all who wait for a batch that has ended."""
        assert batch.results is not None
        waiting, batch.tickets = batch.tickets, {}
        numbers = {custom_id: number for number, custom_id in enumerate(batch.custom_ids, 1)} if batch.rest else {}
        for custom_id, ticket in waiting.items():
            ticket.batch, ticket.ended = None, batch
            outcome = batch.results.take(custom_id)
            if outcome is None:
                outcome = batch.rest.get(numbers.get(custom_id), batch.rest[None])
            if batch.adopted and isinstance(outcome, Transient) and outcome.maybe_paid and batch.batch_id:
                # it is lost money, which whoever asks enters before asking again, unless that has been done
                self._earlier[custom_id] = ticket.elsewhere
                ticket.answer(outcome)
            elif batch.adopted and isinstance(outcome, Transient | RateLimited | Denied):
                ticket.ended = None
                self._place(ticket)  # what kept an earlier process' batch from answering may be over
            else:
                ticket.answer(outcome)
        if not batch.results.left:
            batch.results.close()
            self._open_results.discard(batch.results)
