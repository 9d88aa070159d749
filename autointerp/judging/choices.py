"""Questions with one right answer among several: which window does not belong, which set does the label fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autointerp.failure import Failure
from autointerp.judging.batching import Asked, ask_all
from autointerp.judging.verdicts import Verdict, Verdicts
from autointerp.llm.answers import read_json
from autointerp.llm.asking import LLM
from autointerp.llm.protocol import Completion
from autointerp.prompting.prompt import Prompt
from autointerp.sampling.window import ShownWindow


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One question: sets of windows, and which of the choices is right."""

    sets: tuple[tuple[ShownWindow, ...], ...]
    """What is shown; with one set the choice is among its windows, with several among these."""
    right: int
    """The right choice, from 1 on."""
    window: ShownWindow
    """The window that the verdict is entered for."""
    company: tuple[str, ...]
    """All other windows that are shown, as ``context:position``."""


def spread(count: int, choices: int, rng: np.random.Generator) -> list[int]:
    """Right choices (from 1 on) of ``count`` questions: random, and each as often as any other, give or take one.

    So a judge that always gives the same choice is right by chance and no more.
    """
    even = (np.arange(count) + rng.integers(choices)) % choices
    return [int(choice) + 1 for choice in rng.permutation(even)]


async def judge_choices(
    llm: LLM,
    prompt: Prompt,
    key: str,
    calls: Sequence[Sequence[Choice]],
    values_of: Callable[[Sequence[Choice]], dict[str, Any]],
) -> tuple[Verdicts, Asked[list[int]]]:
    """The verdict on every question, call by call: whether the right choice was made. ``key`` holds the answer's array."""
    requests = []
    for call in calls:
        request = prompt.request(values_of(call), max_tokens=6 * len(call) + 40)
        assert request.json_schema is not None, "the prompt of a judge has an answer schema"

        def read(completion: Completion, schema: dict[str, Any] = request.json_schema) -> list[int]:
            return [int(number) for number in read_json(completion, schema)[key]]

        requests.append((request, read))
    asked = await ask_all(llm, requests)
    return Verdicts(
        tuple(
            _verdict(choice, result if isinstance(result, Failure) else result[number])
            for call, result in zip(calls, asked.results, strict=True)
            for number, choice in enumerate(call)
        )
    ), asked


def chosen_verdicts(choices: Sequence[Choice], chosen: Sequence[int]) -> Verdicts:
    """The verdicts of a judge who has ``chosen`` so, one a question."""
    return Verdicts(tuple(_verdict(choice, number) for choice, number in zip(choices, chosen, strict=True)))


def _verdict(choice: Choice, chosen: int | Failure) -> Verdict:
    failed = isinstance(chosen, Failure)
    return Verdict(
        choice.window.id,
        choice.window.stratum,
        True,
        None if failed else chosen == choice.right,
        failure=chosen.kind if isinstance(chosen, Failure) else None,
        company=choice.company,
    )
