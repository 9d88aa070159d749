"""Runs components over the latents of a chunk: those that compute one after the other, those that ask LLMs together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain
from typing import TypeVar

from autointerp.evidence import LatentEvidence
from autointerp.explainers.base import Explainer
from autointerp.llm.asking import NO_LLMS, LLMs
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import Progress
from autointerp.sampling.silent import silent_strata
from autointerp.scorers.base import Scorer

_LATENTS_AT_ONCE = 512
"""Latents whose calls are under way together: enough to keep any server busy, few enough to hold their prompts in memory."""
_CHUNKS_AT_ONCE = 4
"""Chunks of a stage that are asked about at once, so that the servers have work while one of them comes to its end."""
R = TypeVar("R")
T = TypeVar("T")
Work = Callable[[LatentEvidence, LLMs], Awaitable[Sequence[R]]]
"""What is done for one latent."""


def chunks_at_once(components: Iterable[Explainer | Scorer]) -> int:
    """Chunks of a stage that a driver works beside the subject's; none where no component asks anybody."""
    return _CHUNKS_AT_ONCE if any(component.llm_needs() for component in components) else 0


def over_latents(
    context: RunContext,
    source: str,
    evidence: Iterable[LatentEvidence],
    work: Work[R],
    progress: Progress,
    *,
    asks: bool,
) -> list[R]:
    """The results of ``work`` for each latent, in the order of ``evidence``.

    With ``asks`` the latents proceed together in the thread that holds the connections, else one after the other here.
    ``progress`` hears how many latents are done, and may raise to stop; what is under way is then cancelled.
    """
    if not asks:
        return asyncio.run(_in_turn(evidence, work, progress))

    async def of_latent(item: LatentEvidence) -> Sequence[R]:
        return await work(item, context.llms.llms(source, item.latent))

    return together(context, _with_first_prepared(evidence), of_latent, progress)


def together(
    context: RunContext,
    items: Iterable[T],
    work: Callable[[T], Awaitable[Sequence[R]]],
    progress: Progress,
    *,
    at_once: int = _LATENTS_AT_ONCE,
    units: Callable[[T], int] = lambda _: 1,
) -> list[R]:
    """The results of ``work`` for each item, in their order, at most ``at_once`` under way in the thread that holds the connections.

    ``progress`` hears how many ``units`` are done, and may raise to stop; what is under way is then cancelled.
    """
    done = 0

    async def all_items() -> list[R]:
        room = asyncio.Semaphore(at_once)

        async def one(item: T) -> Sequence[R]:
            nonlocal done
            try:
                return await work(item)
            finally:
                room.release()
                done += units(item)

        async with asyncio.TaskGroup() as group:
            tasks = []
            for item in items:
                await room.acquire()
                tasks.append(group.create_task(one(item)))
        return [result for task in tasks for result in task.result()]

    try:
        return context.llms.run(all_items, lambda: progress(done))
    except BaseExceptionGroup as errors:
        raise _first(errors) from None


def _with_first_prepared(evidence: Iterable[LatentEvidence]) -> Iterable[LatentEvidence]:
    """The same latents, with what is computed once a pool done here: seconds for a large one, which would hold all calls up."""
    items = iter(evidence)
    first = next(items, None)
    if first is None:
        return ()
    silent_strata(first, first.scored_side)
    return chain([first], items)


async def _in_turn(evidence: Iterable[LatentEvidence], work: Work[R], progress: Progress) -> list[R]:
    results: list[R] = []
    for done, item in enumerate(evidence, start=1):
        results += await work(item, NO_LLMS)
        progress(done)
    return results


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group of tasks; what the others raised follows from the same cause, or comes again."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
