"""Questions dealt into calls, and the calls of one latent asked together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from autointerp.failure import Failure
from autointerp.llm.asking import LLM, Answer, AskFailed
from autointerp.llm.protocol import NO_USAGE, Completion, CompletionRequest, Usage

T = TypeVar("T")


def deal(units: Sequence[Sequence[T]], per_call: int, rng: np.random.Generator) -> list[list[T]]:
    """Units (of one question or of several that stay together) dealt into as few calls of about ``per_call`` questions.

    They are dealt in turn, so what stands together in ``units`` (the firing windows, the windows of one stratum) is spread
    evenly: every call has the same mix, give or take one of each. Within a call the order is random.
    """
    if not units:
        return []
    longest = max(len(unit) for unit in units)
    num_calls = -(-len(units) // max(1, per_call // longest))
    calls: list[list[T]] = [[] for _ in range(num_calls)]
    for number, unit in enumerate(units):
        calls[number % num_calls] += unit
    return [[call[i] for i in rng.permutation(len(call))] for call in calls]


@dataclass(frozen=True, slots=True)
class Asked(Generic[T]):
    """What came of some calls."""

    results: tuple[T | Failure, ...]
    """One a call, in their order: what was read of the answer, or why there is none."""
    usage: Usage
    """Of all calls, failed ones among them."""
    models: tuple[str, ...] = ()
    """Models that gave the answers, as they name themselves (the configured one where a reply does not say), sorted; what a
    router sends elsewhere is seen here. None of them where no call was answered."""

    def __add__(self, other: Asked[T]) -> Asked[T]:
        """What came of both."""
        models = tuple(sorted({*self.models, *other.models}))
        return Asked((*self.results, *other.results), self.usage + other.usage, models)

    @property
    def num_calls(self) -> int:
        """Calls that were asked, repairs not counted."""
        return len(self.results)

    @property
    def failures(self) -> list[Failure]:
        """Of the calls that failed."""
        return [result for result in self.results if isinstance(result, Failure)]


async def ask_all(llm: LLM, requests: Sequence[tuple[CompletionRequest, Callable[[Completion], T]]]) -> Asked[T]:
    """All requests asked at once, each read by its function. One that fails takes no other with it.

    Errors: what stops the run (EndpointError, BudgetError), once the other calls have ended.
    """
    # Waiting for all, so that no paid answer is on its way when an error is passed on.
    outcomes: list[Answer[T] | BaseException] = await asyncio.gather(
        *(llm.ask(request, read) for request, read in requests), return_exceptions=True
    )
    results: list[T | Failure] = []
    models: set[str] = set()
    usage = NO_USAGE
    for outcome in outcomes:
        if isinstance(outcome, AskFailed):
            results.append(outcome.failure)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            results.append(outcome.value)
            models.add(outcome.completion.model or llm.model)
        usage = usage + outcome.usage
    return Asked(tuple(results), usage, tuple(sorted(models)))
