"""Yeses on silent windows, asked again in other company: a false yes of the judge is seldom said twice (METHODS 4).

A judge that errs on one silent window in a hundred caps every precision at pi / (pi + .01). Asking again takes one call a label,
and none where nothing is in doubt; what stands beside the doubtful windows there shows how often the judge agrees with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from autointerp.failure import FailureKind
from autointerp.judging.batching import Asked, deal
from autointerp.judging.questions import Question, Said, answered, judge_questions
from autointerp.judging.verdicts import Verdict
from autointerp.llm.asking import LLM
from autointerp.prompting.prompt import Prompt
from sae_core.token_text import TokenText


@dataclass(frozen=True, slots=True, eq=False)
class JudgedTwice:
    """Verdicts with their second answers where one was asked for."""

    verdicts: dict[Question, Verdict]
    """Of every question."""
    asked: Asked[Said]
    """All calls, those of the second asking among them."""
    company: int = 0
    """Questions in no doubt that were asked again as company, and answered."""
    agreed: int = 0
    """Of these, with the same answer as before."""
    lost: tuple[FailureKind, ...] = ()
    """Why doubtful questions got no second answer, one each."""


async def judge_once(
    llm: LLM,
    prompt: Prompt,
    label: str,
    calls: Sequence[Sequence[Question]],
    pieces: TokenText,
    rng: np.random.Generator,
    *,
    per_call: int = 20,
    context_tokens: int = 0,
    logprobs: Literal[False, "auto", "always"] = False,
) -> JudgedTwice:
    """As ``judge_twice``, with no second asking."""
    return JudgedTwice(
        *await judge_questions(llm, prompt, label, calls, pieces, context_tokens=context_tokens, logprobs=logprobs)
    )


async def judge_twice(
    llm: LLM,
    prompt: Prompt,
    label: str,
    calls: Sequence[Sequence[Question]],
    pieces: TokenText,
    rng: np.random.Generator,
    *,
    per_call: int = 20,
    context_tokens: int = 0,
    logprobs: Literal[False, "auto", "always"] = False,
) -> JudgedTwice:
    """The verdicts on every question of ``calls``; a yes on a silent window is asked again.

    It stands then in another order among as many others, drawn from those that were answered, because answers in one call hang
    on each other. ``logprobs`` as in ``judge_questions``. Errors: what stops the run.
    """
    once = await judge_once(llm, prompt, label, calls, pieces, rng, context_tokens=context_tokens, logprobs=logprobs)
    verdicts = once.verdicts
    doubtful = [question for question, verdict in verdicts.items() if verdict.answer and not question.truth]
    if not doubtful:
        return once
    doubted = set(doubtful)
    answered = [q for q, verdict in verdicts.items() if verdict.answer is not None and q not in doubted]
    chosen = rng.permutation(len(answered))[: max(len(doubtful), 2)]
    company = [answered[int(index)] for index in chosen]
    again, asked_again = await judge_questions(
        llm,
        prompt,
        label,
        deal([[question] for question in (*doubtful, *company)], per_call, rng),
        pieces,
        context_tokens=context_tokens,
        logprobs=logprobs,
    )
    both = verdicts | {question: replace(verdicts[question], again=again[question].answer) for question in doubtful}
    lost = [again[question].failure for question in doubtful]
    second = [(verdicts[question].answer, again[question].answer) for question in company]
    return JudgedTwice(
        verdicts=both,
        asked=once.asked + asked_again,
        company=sum(answer is not None for _, answer in second),
        agreed=sum(answer is before for before, answer in second),
        lost=tuple(kind for kind in lost if kind is not None),
    )


def answered_twice(questions: Sequence[Question], answers: Sequence[bool], *, again: bool) -> dict[Question, Verdict]:
    """The verdicts of a judge who gives these ``answers``, one each; with ``again`` it says every yes on a silent window twice."""
    verdicts = answered(questions, answers)
    if not again:
        return verdicts
    return {
        question: replace(verdict, again=True) if verdict.answer and not question.truth else verdict
        for question, verdict in verdicts.items()
    }
