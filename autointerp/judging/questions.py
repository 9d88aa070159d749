"""Yes-or-no questions about windows: does the label fit this window, or its marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from autointerp.failure import Failure
from autointerp.judging.batching import Asked, ask_all
from autointerp.judging.logprob_fallback import WithoutLogprobsAtNeed
from autointerp.judging.verdicts import Verdict
from autointerp.llm.answers import binary_probabilities, read_json
from autointerp.llm.asking import LLM
from autointerp.llm.protocol import Completion, CompletionRequest
from autointerp.prompting.prompt import Prompt
from autointerp.prompting.quoting import json_text, quote_lines, window_text
from autointerp.sampling.window import ShownWindow
from sae_core.token_text import TokenText

ALTERNATIVES = 5
"""Alternatives asked for each answer token, where log-probabilities are: a 0 and a 1 are among the first ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A window to be judged."""

    window: ShownWindow
    """What is shown."""
    truth: bool
    """The right answer."""
    marks: frozenset[int] | None = None
    """Indices of the tokens that are marked; None where the question is about the whole window."""
    flagged: bool = False
    """Whether a screen has flagged the window for this label."""

    def line(self, pieces: TokenText, context_tokens: int) -> str:
        """The window's text as the judge reads it."""
        marked = None if self.marks is None else self.marks.__contains__
        return window_text(self.window, pieces, context_tokens=context_tokens, marked=marked)


@dataclass(frozen=True, slots=True)
class Said:
    """A judge's answer to one call."""

    answers: tuple[bool, ...]
    """One a question."""
    probabilities: tuple[float, ...] | None
    """Of a yes, one a question; None where the reply does not give them."""


async def judge_questions(
    llm: LLM,
    prompt: Prompt,
    label: str,
    calls: Sequence[Sequence[Question]],
    pieces: TokenText,
    *,
    context_tokens: int = 0,
    logprobs: Literal[False, "auto", "always"] = False,
) -> tuple[dict[Question, Verdict], Asked[Said]]:
    """The verdict on every question, and what the calls came to; a failed call's questions carry its failure.

    ``logprobs``: whether answers get probabilities; with "auto" a call that the server cannot answer so is asked without.
    """
    requests = []
    for call in calls:
        lines = [question.line(pieces, context_tokens) for question in call]
        values = {"label": json_text(label), "windows": quote_lines(lines).block, "count": len(call)}
        request = prompt.request(
            values,
            # white space between the numbers included
            max_tokens=6 * len(call) + 40,
            top_logprobs=ALTERNATIVES if logprobs else 0,
        )
        requests.append((request, _reader(request)))
    asked = await ask_all(WithoutLogprobsAtNeed(llm) if logprobs == "auto" else llm, requests)
    found: dict[Question, Verdict] = {}
    for call, result in zip(calls, asked.results, strict=True):
        for number, question in enumerate(call):
            found[question] = _verdict(question, result, number)
    return found, asked


def answered(questions: Sequence[Question], answers: Sequence[bool]) -> dict[Question, Verdict]:
    """The verdicts on ``questions`` of a judge who gives these ``answers``, one each, and no probabilities."""
    said = Said(tuple(bool(answer) for answer in answers), None)
    return {question: _verdict(question, said, number) for number, question in enumerate(questions)}


def _reader(request: CompletionRequest) -> Callable[[Completion], Said]:
    schema = request.json_schema
    assert schema is not None, "the prompt of a judge has an answer schema"

    def read(completion: Completion) -> Said:
        answers = read_json(completion, schema)["matches"]
        probabilities = binary_probabilities(completion, "matches")
        return Said(tuple(bool(answer) for answer in answers), None if probabilities is None else tuple(probabilities))

    return read


def _verdict(question: Question, result: Said | Failure, number: int) -> Verdict:
    window = question.window
    of_label = question.marks is None and question.truth
    return Verdict(
        window=window.id,
        stratum=window.stratum,
        truth=question.truth,
        answer=None if isinstance(result, Failure) else result.answers[number],
        probability=None
        if isinstance(result, Failure) or result.probabilities is None
        else result.probabilities[number],
        failure=result.kind if isinstance(result, Failure) else None,
        flagged=question.flagged,
        peak=window.max_activation if of_label else None,
        first=int(window.firing_positions[0]) if of_label else None,
    )
