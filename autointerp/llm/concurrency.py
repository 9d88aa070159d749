"""How many calls may be under way at once: as many as the server takes without answering 429.

Additive increase and multiplicative decrease (Chiu & Jain 1989), with a slow start. Only 429 cuts, once an episode; a
server that is slow or ill (5xx, timeouts) is not helped by fewer calls that each fail, so these only hold up growth.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

GROWTH = 1.05
"""Factor a clean round, once the slow start (doubling) has ended with the first cut."""
CUT = 0.8
"""Factor an episode of 429s."""
EPISODE_S = 15.0
"""Shortest time from one cut to the next."""
SATURATED = 0.8
"""Share of the limit that must be in use for a success to say something about the limit."""
_KEPT_CHANGES = 1000


class LimitChange(NamedTuple):
    """One change of the limit."""

    at_s: float
    """By the limiter's clock."""
    limit: int
    """From then on."""
    cause: str
    """``start``, ``grown`` or ``cut``."""


class Place(NamedTuple):
    """One call under way."""

    cuts: int
    """Cuts that had been made when it began."""


class AdaptiveLimit:
    """An asyncio limiter whose limit follows what the server bears. First come, first served.

    ``start``: calls at once to begin with; ``most``: never more; ``clock``: seconds that only grow.
    """

    def __init__(self, start: int, most: int, clock: Callable[[], float]) -> None:
        assert 1 <= start <= most
        self.limit = start
        """Calls that may be under way now."""
        self.in_flight = 0
        """Calls that are."""
        self.history: deque[LimitChange] = deque([LimitChange(clock(), start, "start")], maxlen=_KEPT_CHANGES)
        """The last changes."""
        self._most = most
        self._clock = clock
        self._queue: deque[asyncio.Future[None]] = deque()
        self._slow_start = True
        self._round = 0
        self._cuts = 0
        self._episode_until_s = -math.inf

    async def enter(self) -> Place:
        """Wait for a place. It must be given back with :meth:`leave`, whatever happens."""
        if self.in_flight >= self.limit:  # else nobody is waiting either
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # it was given in the same moment
                    self.leave()
                raise
        else:
            self.in_flight += 1
        return self.now()

    def now(self) -> Place:
        """A place that has been waited in, as if it had just been given."""
        return Place(self._cuts)

    def leave(self) -> None:
        """Give a place back; the next in the queue gets it."""
        self.in_flight -= 1
        self._admit()

    def succeeded(self) -> None:
        """A call under way was answered. A round is as many answers as the limit, all while it was nearly used up."""
        if self._clock() < self._episode_until_s or self.in_flight < SATURATED * self.limit:
            return
        self._round += 1
        if self._round >= self.limit:
            self._round = 0
            grown = 2 * self.limit if self._slow_start else math.ceil(self.limit * GROWTH)
            self._change(min(grown, self._most), "grown")

    def limited(self, place: Place, retry_after_s: float | None) -> None:
        """A call was answered 429. ``retry_after_s``: what the server asks for, None where it says nothing."""
        now = self._clock()
        if now < self._episode_until_s or place.cuts < self._cuts:
            return  # a straggler of an episode that has been cut for
        self._cuts += 1
        self._episode_until_s = now + max(EPISODE_S, retry_after_s or 0.0)
        self._slow_start = False
        self._round = 0
        self._change(max(1, math.floor(self.limit * CUT)), "cut")

    def troubled(self) -> None:
        """A call failed otherwise (5xx, no answer in time): the round is not clean and begins anew."""
        self._round = 0

    def _change(self, limit: int, cause: str) -> None:
        if limit != self.limit:
            self.limit = limit
            self.history.append(LimitChange(self._clock(), limit, cause))
            self._admit()

    def _admit(self) -> None:
        while self._queue and self.in_flight < self.limit:
            turn = self._queue.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)
