"""Which failed calls are made again, and when: the table of RELIABILITY 5, rows 15 to 19, said as numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autointerp.llm.call_errors import (
    CallError,
    Denied,
    Forbidden,
    InvalidReply,
    NoReply,
    RateLimited,
    Refused,
    Rejected,
    Transient,
)
from autointerp.llm.retrying import Tries, next_wait

RNG = np.random.default_rng(0)


def wait(error: CallError, attempt: int = 1, elapsed_s: float = 0.0, logprobs: bool = False) -> float | None:
    return next_wait(error, attempt, elapsed_s, RNG, give_up_s=900.0, logprobs=logprobs)


@pytest.mark.parametrize(
    ("told", "waited"), [(0.0, 0.0), (1.0, 1.0), (119.0, 119.0), (3600.0, 900.0), (math.inf, None), (math.nan, None)]
)
def test_a_rate_limit_is_waited_for_as_told_up_to_the_patience(told: float, waited: float | None) -> None:
    found = wait(RateLimited("429", told))
    assert found == waited if waited is not None else found is not None and 0.375 <= found <= 0.5


@pytest.mark.parametrize("told", [None, -1.0])
def test_without_a_time_that_makes_sense_waits_double_up_to_half_a_minute(told: float | None) -> None:
    longest = [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    for attempt, most in enumerate(longest, 1):
        found = [wait(RateLimited("429", told), attempt) for _ in range(200)]
        assert all(w is not None and 0.75 * most <= w <= most for w in found)
        assert np.std(found) > 0.05 * most, "calls that failed together must not come back together"
    assert wait(RateLimited("429"), 10_000, 10_000.0) is not None, "a rate limit is never a request's own failure"


@pytest.mark.parametrize(
    ("error", "logprobs", "tries"),
    [
        (Transient("reset"), False, 6),
        (Transient("502", status=502), True, 6),
        (Transient("500", status=500), False, 6),
        (Transient("500", status=500), True, 2),
        (Transient("slow", timed_out=True, maybe_paid=True), False, 3),
        (NoReply("html"), True, 6),
        (InvalidReply("cut off"), False, 2),
        (Refused("moderation"), False, 1),
        (Forbidden("403"), False, 1),
        (Rejected("400"), False, 1),
        (Denied("401"), False, 1),
    ],
)
def test_other_failures_have_so_many_tries(error: CallError, logprobs: bool, tries: int) -> None:
    counted = Tries(900.0, RNG, logprobs=logprobs)
    made = 1
    while True:
        last = counted.is_last(error)
        if counted.next_wait(error) is None:
            break
        assert not last
        made += 1
    assert (made, last) == (tries, True)


def test_patience_ends_by_the_clock_too() -> None:
    assert wait(Transient("x"), 1, 890.0) is not None
    assert wait(Transient("x"), 5, 895.0) is None


def test_rate_limits_do_not_use_up_the_tries_of_other_failures() -> None:
    counted = Tries(900.0, RNG, logprobs=False)
    for _ in range(50):
        assert counted.next_wait(RateLimited("429", 300.0)) == 300.0
    assert (counted.failures, counted.elapsed_s) == (0, 0.0)
    assert [counted.next_wait(Transient("x")) is not None for _ in range(6)] == [True] * 5 + [False]
    assert 11 < counted.elapsed_s <= 15.5
