"""Commits in groups: what many callers want written within some milliseconds goes into one transaction.

A commit waits for the disk, so one a call would cost more than the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Operation = TypeVar("Operation")
Result = TypeVar("Result")

GATHER_S = 0.02
"""Longest time from the beginning of one group to the next while there is something to write."""


class GroupWriter(Generic[Operation, Result]):
    """Collects operations of one event loop, and has ``work`` do each group of them in a thread, one group after the other.

    ``work`` gives one result for each operation, in order; what it raises, every caller of that group gets.
    """

    def __init__(self, work: Callable[[Sequence[Operation]], Sequence[Result]], gather_s: float = GATHER_S) -> None:
        self._work = work
        self._gather_s = gather_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llm-store")
        self._waiting: list[tuple[Operation, asyncio.Future[Result]]] = []
        self._begun_s = float("-inf")
        self._scheduled = False
        self._running: asyncio.Future[Sequence[Result]] | None = None
        self._closed = False

    def submit(self, operation: Operation) -> asyncio.Future[Result]:
        """What ``work`` makes of the operation, once it is written. Where the writer is idle it begins at once."""
        assert not self._closed, "the writer is closed"
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((operation, result))
        self._schedule(loop)
        return result

    async def flush(self) -> None:
        """Wait until all that was submitted is written, or has failed."""
        while self._waiting or self._running is not None:
            if self._running is None:
                self._begin()
            assert self._running is not None
            await asyncio.wait([self._running])
            await asyncio.sleep(0)  # its callback hands out the results

    async def close(self) -> None:
        """Write what is waiting and end the thread."""
        await self.flush()
        self._closed = True
        self._thread.shutdown(wait=True)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting and self._running is None and not self._scheduled:
            self._scheduled = True
            # call_at in the past means at the next turn of the loop: what was submitted in this turn goes together
            loop.call_at(self._begun_s + self._gather_s, self._begin)

    def _begin(self) -> None:
        self._scheduled = False
        if not self._waiting or self._running is not None:
            return
        loop = asyncio.get_running_loop()
        group, self._waiting = self._waiting, []
        self._begun_s = loop.time()
        self._running = loop.run_in_executor(self._thread, self._work, [operation for operation, _ in group])
        self._running.add_done_callback(lambda done: self._end(group, done, loop))

    def _end(
        self,
        group: Sequence[tuple[Operation, asyncio.Future[Result]]],
        done: asyncio.Future[Sequence[Result]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._running = None
        error = done.exception()
        results = () if error is not None else done.result()
        for number, (_, result) in enumerate(group):
            if result.done():
                continue  # its caller was cancelled
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(results[number])
        self._schedule(loop)
