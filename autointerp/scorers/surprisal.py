"""Is the text less surprising to a judge that has read the label? ``log p(x | label) - log p(x | neutral)`` (METHODS 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.judging.batching import ask_all
from autointerp.judging.natural_judge import NaturalJudge
from autointerp.judging.outcome import missing_label
from autointerp.judging.supposed import SupposedLabel
from autointerp.llm.asking import NO_LLMS, BadAnswer, LLMNeed, LLMs
from autointerp.llm.prompt_tokens import holders
from autointerp.llm.protocol import Capability, Completion, CompletionRequest
from autointerp.planning.planned import PlannedCalls, PlanSizes, planned_calls, text_tokens
from autointerp.prompting.prompt import load_prompt
from autointerp.prompting.quoting import json_text, window_text
from autointerp.score import Score


class _Read(NamedTuple):
    """A window's own tokens in one prompt."""

    tokens: tuple[str, ...]
    logprob: float
    """Sum over them, nats."""


class SurprisalScorer(NaturalJudge):
    """How well the gain of a text's log-probability by the label tells activating windows from others."""

    CHANCE: ClassVar[float | None] = 0.5

    kind: Literal["surprisal"] = "surprisal"
    """Name in the config file."""
    endpoint: str = ""
    """Name of the judge's endpoint; "" for the first one."""
    neutral: str = Field(default="any text at all", min_length=1)
    """What stands in the label's place in the prompt that it is compared with."""

    def llm_needs(self) -> list[LLMNeed]:
        """One endpoint with prompt log-probabilities."""
        alternative = 'leave the scorer "surprisal" out, or give it an endpoint of a vLLM server'
        return [LLMNeed(self.endpoint, frozenset({Capability.PROMPT_LOGPROBS}), alternative, (self.kind,))]

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """Two calls a window."""
        call = planned_calls(
            load_prompt("surprisal"),
            self.kind,
            self.endpoint,
            calls=2 * (self.firing + self.silent),
            filled=(sizes.label_tokens + text_tokens(self.neutral)) / 2 + sizes.window_tokens,
            answer=0,
            most_answer=1,
        )
        return [call]

    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        """Ranks windows of the scored side by what the label gains; two calls a window, of which the neutral one is the same
        for every label of the latent.

        Failures: ``no_explanation``, ``dead``, ``too_few_windows``, or the judge's own where all windows of a kind failed.
        """
        missing = missing_label(self.kind, evidence.latent, explanation)
        if explanation is None or missing is not None:
            assert missing is not None
            return missing
        sample = self.draw(evidence)
        if (short := self.shortage(sample, explanation, evidence, self.min_windows)) is not None:
            return short
        prompt, pieces = load_prompt("surprisal"), evidence.store.pieces
        requests = []
        for label in (explanation.text, self.neutral):
            for window in sample.windows:
                body = window_text(window, pieces).rstrip()
                text = prompt.text({"label": json_text(label), "text": body})
                request = CompletionRequest(text=text, max_tokens=0, prompt_logprobs=1, prompt_hash=prompt.hash)
                requests.append((request, _reader(text, body)))
        llm = llms.of(self.endpoint, self.kind)
        asked = await ask_all(llm, requests)
        half = len(sample.windows)
        gains = [_gain(*pair) for pair in zip(asked.results[:half], asked.results[half:], strict=True)]
        return self.ranked(explanation, sample, gains, self.spent(asked, llm.model))

    def scores_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
        """See the base class."""
        return self.ranked_if(labels, evidence)


def _reader(text: str, body: str) -> Callable[[Completion], _Read]:
    """Reads the log-probabilities of the tokens of ``body``, which ends ``text``."""

    def read(completion: Completion) -> _Read:
        entries = completion.prompt_logprobs
        # the last newline before the window; where the window begins with more of them, a token may hold these too
        before = text.count("\n") - body.count("\n")
        start = holders(entries, text, "\n")[before - 1] + 1
        own = [entry for entry in entries[start:] if entry is not None]
        if not own:
            raise BadAnswer("the server gives no log-probability of the window's tokens")
        return _Read(tuple(entry.token for entry in own), sum(entry.logprob for entry in own))

    return read


def _gain(labelled: _Read | Failure, neutral: _Read | Failure) -> float | Failure:
    """What the label gains a window, nats, or why that is not known."""
    for one in (labelled, neutral):
        if isinstance(one, Failure):
            return one
    assert isinstance(labelled, _Read)
    assert isinstance(neutral, _Read)
    if labelled.tokens != neutral.tokens:
        message = "the server's tokens of a window are others behind another label, so they cannot be compared"
        return Failure(kind=FailureKind.UNPARSEABLE, message=message)
    return labelled.logprob - neutral.logprob
