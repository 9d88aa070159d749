"""Is the text less surprising to a judge that has read the label? ``log p(x | label) - log p(x | neutral)`` (METHODS 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.judging.batching import ask_all
from autointerp.judging.natural_judge import NaturalJudge
from autointerp.judging.outcome import missing_label
from autointerp.judging.prompt_ending import ending_reader, gain
from autointerp.judging.supposed import SupposedLabel
from autointerp.llm.asking import NO_LLMS, LLMNeed, LLMs
from autointerp.llm.protocol import Capability, CompletionRequest
from autointerp.planning.planned import PlannedCalls, PlanSizes, planned_calls, text_tokens
from autointerp.prompting.prompt import load_prompt
from autointerp.prompting.quoting import json_text, window_text
from autointerp.score import Score


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
                requests.append((request, ending_reader(text, body)))
        llm = llms.of(self.endpoint, self.kind)
        asked = await ask_all(llm, requests)
        half = len(sample.windows)
        gains = [gain(*pair) for pair in zip(asked.results[:half], asked.results[half:], strict=True)]
        return self.ranked(explanation, sample, gains, self.spent(asked, llm.model))

    def scores_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
        """See the base class."""
        return self.ranked_if(labels, evidence)
