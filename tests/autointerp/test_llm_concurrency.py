"""The adaptive limit against a simulated server whose capacity is known, on a clock that is simulated too."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from autointerp.llm.concurrency import CUT, EPISODE_S, AdaptiveLimit
from tests.autointerp.virtual_time import run_virtually


class Server:
    """Answers after ``latency_s``; 429 to what comes while ``capacity`` calls are under way."""

    def __init__(self, capacity: int, latency_s: float = 0.1) -> None:
        self.capacity, self.latency_s = capacity, latency_s
        self.busy = self.peak = self.refused = self.answered = 0

    async def call(self) -> bool:
        if self.busy >= self.capacity:
            self.refused += 1
            await asyncio.sleep(0.01)
            return False
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        await asyncio.sleep(self.latency_s)
        self.busy -= 1
        self.answered += 1
        return True


async def drive(limit: AdaptiveLimit, server: Server, calls: int, retry_after_s: float | None = None) -> None:
    async def one() -> None:
        while True:
            place = await limit.enter()
            good = await server.call()
            if good:
                limit.succeeded()
            else:
                limit.limited(place, retry_after_s)
            limit.leave()
            if good:
                return
            await asyncio.sleep(1.0)

    await asyncio.gather(*(one() for _ in range(calls)))
    assert limit.in_flight == 0


def new_limit(start: int, most: int) -> AdaptiveLimit:
    return AdaptiveLimit(start, most, asyncio.get_running_loop().time)


def test_without_429_it_doubles_up_to_the_most_and_stays() -> None:
    async def main() -> None:
        limit, server = new_limit(4, 100), Server(10**6)
        await drive(limit, server, 2000)
        assert [change.limit for change in limit.history] == [4, 8, 16, 32, 64, 100]
        assert server.peak == 100

    run_virtually(main())


def test_it_settles_around_what_the_server_bears() -> None:
    async def main() -> None:
        limit, server = new_limit(8, 1000), Server(40)
        await drive(limit, server, 10_000)
        before = server.refused
        await drive(limit, server, 60_000)
        assert server.answered == 70_000
        settled = [change.limit for change in limit.history if change.at_s > 40]
        assert settled
        assert min(settled) >= int(40 * CUT)
        assert max(settled) <= 45
        cuts = [change.at_s for change in limit.history if change.cause == "cut"]
        assert len(cuts) >= 3
        assert np.diff(cuts).min() >= EPISODE_S
        assert server.refused - before < 0.02 * 60_000
        # never far from what is possible: 70,000 calls of 0.1 s at 40 at once take 175 s
        assert asyncio.get_running_loop().time() < 1.25 * 175

    run_virtually(main())


def test_one_cut_an_episode_however_many_429s() -> None:
    async def main() -> None:
        limit = new_limit(64, 64)
        places = [await limit.enter() for _ in range(64)]
        for place in places:
            limit.limited(place, None)
        assert (limit.limit, len(limit.history)) == (51, 2)
        await asyncio.sleep(EPISODE_S + 1)
        for place in places:  # sent before the cut: they say nothing new
            limit.limited(place, None)
        assert limit.limit == 51
        for _ in places:
            limit.leave()
        place = await limit.enter()
        limit.limited(place, None)
        assert limit.limit == 40

    run_virtually(main())


@pytest.mark.parametrize(("retry_after_s", "episode_s"), [(None, 15.0), (1.0, 15.0), (119.0, 119.0)])
def test_an_episode_lasts_as_long_as_the_server_asks(retry_after_s: float | None, episode_s: float) -> None:
    async def main() -> None:
        limit = new_limit(100, 100)
        limit.limited(await limit.enter(), retry_after_s)
        await asyncio.sleep(episode_s - 0.1)
        limit.limited(await limit.enter(), retry_after_s)
        assert limit.limit == 80
        for _ in range(1000):  # successes of the episode do not count
            limit.in_flight = 80
            limit.succeeded()
        assert limit.limit == 80
        await asyncio.sleep(0.2)
        limit.in_flight = 2
        limit.limited(await limit.enter(), retry_after_s)
        assert limit.limit == 64

    run_virtually(main())


def test_only_saturated_rounds_without_trouble_grow_it() -> None:
    async def main() -> None:
        limit = new_limit(10, 1000)
        limit.in_flight = 7  # less than 80%
        for _ in range(100):
            limit.succeeded()
        assert limit.limit == 10
        limit.in_flight = 8
        for _ in range(5):
            for _ in range(9):
                limit.succeeded()
            limit.troubled()  # a 5xx in every round
        assert limit.limit == 10
        for _ in range(10):
            limit.succeeded()
        assert limit.limit == 20
        limit.limited(await limit.enter(), None)
        assert limit.limit == 16
        await asyncio.sleep(EPISODE_S)
        limit.in_flight = 16
        for _ in range(16):
            limit.succeeded()
        assert limit.limit == 17, "after a cut, 5% a round and no doubling"

    run_virtually(main())


def test_first_come_first_served_and_cancelled_ones_hold_nobody_up() -> None:
    async def main() -> None:
        limit, order = new_limit(1, 1), []

        async def one(number: int) -> None:
            await limit.enter()
            order.append(number)
            await asyncio.sleep(1)
            limit.leave()

        tasks = [asyncio.ensure_future(one(number)) for number in range(6)]
        await asyncio.sleep(0.5)
        tasks[2].cancel()
        await asyncio.sleep(0.4)
        limit.leave()  # gives task 1 its place ...
        tasks[1].cancel()  # ... which is cancelled before it takes it
        limit.in_flight += 1  # (the place that was given back early here is task 0's own)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 3, 4, 5]
        assert limit.in_flight == 0

    run_virtually(main())


def test_the_limit_is_never_below_one() -> None:
    async def main() -> None:
        limit = new_limit(2, 8)
        for _ in range(5):
            place = await limit.enter()
            limit.limited(place, None)
            limit.leave()
            await asyncio.sleep(EPISODE_S + 1)
        assert limit.limit == 1

    run_virtually(main())
