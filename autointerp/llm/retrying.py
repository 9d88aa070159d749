"""Whether a failed call is made again, and when: pure functions, and the counts of one request.

The client's own retries are off, so that nothing is sent, or paid, that this does not decide.
"""

from __future__ import annotations

import math

import numpy as np

from autointerp.failure import FailureKind
from autointerp.llm.call_errors import CallError, InvalidReply, RateLimited, Transient

MOST_TRIES = 6
"""Tries of a call that fails in a way that may be over at the next one."""
MOST_TIMEOUTS = 3
"""Tries of a call that is not answered in time: each may be paid all the same."""
MOST_SAME = 2
"""Tries of a call whose failure is likely to be the same each time."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
JITTER = 0.25
"""Waits are shortened at random by up to this share, so that calls that failed together do not come back together."""


def next_wait(
    error: CallError,
    attempt: int,
    elapsed_s: float,
    rng: np.random.Generator,
    *,
    give_up_s: float,
    logprobs: bool = False,
) -> float | None:
    """Seconds to wait before the next try, None where there is none.

    ``attempt``: tries of this request that have failed, from 1 (429s are counted apart from the others). ``elapsed_s``:
    time that this request has spent on failed tries and waits, those for 429 left out. ``give_up_s``: time after which
    it is given up, and the longest that a server's Retry-After is honoured at a time. ``logprobs``: whether
    log-probabilities are asked for.
    """
    if isinstance(error, RateLimited):
        if error.retry_after_s is not None and 0 <= error.retry_after_s < math.inf:
            return min(error.retry_after_s, give_up_s)
        return _backoff(attempt, rng)
    wait_s = _backoff(attempt, rng)
    return None if attempt >= most_tries(error, logprobs=logprobs) or elapsed_s + wait_s > give_up_s else wait_s


def most_tries(error: CallError, *, logprobs: bool) -> int:
    """Tries of a request that fails like this, the first one counted; 429s are not."""
    if isinstance(error, InvalidReply):
        return MOST_SAME
    if not isinstance(error, Transient):
        return 1
    if error.kind is FailureKind.TIMEOUT:
        return MOST_TIMEOUTS
    # servers answer 500 where a log-probability is -inf, every time (vllm-project/vllm#10234, sgl-project/sglang#5984)
    return MOST_SAME if logprobs and error.status == 500 else MOST_TRIES


class Tries:
    """How often one request has been tried, and how long."""

    def __init__(self, give_up_s: float, rng: np.random.Generator, *, logprobs: bool) -> None:
        self.failures = 0
        """Tries that failed, 429s left out."""
        self.elapsed_s = 0.0
        """Time spent on them and on waiting between them."""
        self.hopeless = False
        """Whether another try would give the same."""
        self._limited = 0
        self._give_up_s, self._rng, self._logprobs = give_up_s, rng, logprobs

    def next_wait(self, error: CallError) -> float | None:
        """Count a failed try; seconds to wait before the next one, None where there is none."""
        if self.hopeless:
            return None
        limited = isinstance(error, RateLimited)
        if limited:
            self._limited += 1
        else:
            self.failures += 1
        attempt = self._limited if limited else self.failures
        wait_s = next_wait(
            error, attempt, self.elapsed_s, self._rng, give_up_s=self._give_up_s, logprobs=self._logprobs
        )
        if wait_s is not None and not limited:
            self.elapsed_s += wait_s
        return wait_s

    def is_last(self, error: CallError) -> bool:
        """Whether the try that has just failed so, and is not counted yet, is the last one by its number."""
        return self.failures + 1 >= most_tries(error, logprobs=self._logprobs)


def _backoff(attempt: int, rng: np.random.Generator) -> float:
    longest = min(FIRST_WAIT_S * 2.0 ** min(attempt - 1, 32), LONGEST_WAIT_S)
    return longest * (1.0 - JITTER * float(rng.random()))
