"""Is the label likelier behind a text that was written under steering? ``log p(z | steered text) - log p(z | clean text)`` (METHODS 5).

Whatever the texts say, some labels gain more than others. So the same is asked of other latents' labels on the same texts, and the
figure is what this label gains beyond them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from autointerp.evidence import EvidenceRequest, LatentEvidence, LensRequest
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.judging.batching import ask_all
from autointerp.judging.outcome import failed_of, spent
from autointerp.judging.prompt_ending import Ending, ending_reader, gain
from autointerp.judging.steered_judge import SteeredTextsJudge, near_latents, no_answers, shown_before, shown_text
from autointerp.llm.asking import LLMNeed, LLMs
from autointerp.llm.protocol import Capability, Completion, CompletionRequest
from autointerp.planning.planned import PlannedCalls, PlanSizes, planned_calls
from autointerp.prompting.prompt import load_prompt
from autointerp.prompting.quoting import json_text
from autointerp.score import Score, ScoreValue
from autointerp.statistics.label_effect import label_effect
from sae_core.hashing import seed_for

if TYPE_CHECKING:
    from sae_core.intervention.text_evidence import SteeredTexts


class SteeredSurprisalScorer(SteeredTextsJudge):
    """S_adj: what steering makes the label gain a token, less what other latents' labels gain on the same texts."""

    CHANCE: ClassVar[float | None] = 0.0
    COMPARES_LABELS: ClassVar[bool] = True

    kind: Literal["steered_surprisal"] = "steered_surprisal"
    """Name in the config file."""
    other_labels: int = Field(default=64, ge=2)
    """Labels of other latents, of like length, none of them of a decoder neighbour; each costs as many calls as the label itself."""

    def needs(self) -> list[EvidenceRequest]:
        """The texts, and the latent's neighbours."""
        return [*super().needs(), LensRequest()]

    def llm_needs(self) -> list[LLMNeed]:
        """One endpoint with prompt log-probabilities."""
        alternative = (
            'take the scorer "steered_choice" in the place of "steered_surprisal", or an endpoint of a vLLM server'
        )
        return [LLMNeed(self.endpoint, frozenset({Capability.PROMPT_LOGPROBS}), alternative, (self.kind,))]

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """A call for each text, steered and clean, and each label."""
        call = planned_calls(
            load_prompt(self.kind),
            self.kind,
            self.endpoint,
            calls=2 * self.texts * (1 + self.other_labels),
            filled=sizes.label_tokens + self._text_tokens(sizes, self.context_tokens + self.new_tokens),
            answer=0,
            most_answer=1,
        )
        return [call]

    async def _judge(
        self, explanation: Explanation, evidence: LatentEvidence, texts: SteeredTexts, llms: LLMs
    ) -> Score:
        """See the base class; ``too_few_labels`` where too few others are there."""
        latent = evidence.latent
        pairs, num_collapsed, num_clean = _pairs(texts, latent, self.collapse_factor)
        values: dict[str, ScoreValue] = {
            f"{self.kind}_collapsed": num_collapsed,
            f"{self.kind}_clean_collapsed": num_clean,
        }
        if (failure := self._too_few(len(pairs), num_collapsed)) is not None:
            return self._scored(explanation, latent, values, failure)
        others = comparable_labels(explanation, evidence, self.other_labels)
        if len(others) < self.other_labels:
            failure = Failure(
                kind=FailureKind.TOO_FEW_LABELS,
                message=f"{len(others)} labels of other latents that are no neighbours can be compared with, and {self.other_labels} "
                "are needed (other_labels)",
            )
            return self._scored(explanation, latent, values, failure)
        requests = [
            self._request(label, texts, row, evidence)
            for pair in pairs
            for label in (explanation.text, *others)
            for row in pair
        ]
        llm = llms.of(self.endpoint, self.kind)
        asked = await ask_all(llm, requests)
        gains = np.full((len(pairs), 1 + len(others)), np.nan)
        lost = []
        for number, (steered, clean) in enumerate(zip(asked.results[::2], asked.results[1::2], strict=True)):
            found = gain(steered, clean)
            if isinstance(found, Failure):
                lost.append(found.kind)
            else:
                assert isinstance(steered, Ending)
                gains[divmod(number, 1 + len(others))] = found / len(steered.tokens)
        values |= spent(self.kind, asked, llm.model)
        values |= {f"{self.kind}_tried": gains.size - len(lost), **failed_of(self.kind, lost)}
        own, controls = _complete(gains)
        if len(own) < self.min_texts or len(controls) < max(2, self.other_labels // 2):
            return self._scored(explanation, latent, values, no_answers(asked, "too few texts or labels have a gain"))
        effect = label_effect(own, controls)
        values |= {
            f"{self.kind}_score": effect.adjusted,
            f"{self.kind}_low": effect.low,
            f"{self.kind}_high": effect.high,
            f"{self.kind}_se": effect.standard_error,
            f"{self.kind}_plain": effect.score,
            f"{self.kind}_z": effect.z,
            f"{self.kind}_above": effect.above,
            f"{self.kind}_texts": effect.num_texts,
            f"{self.kind}_labels": effect.num_labels,
        }
        return self._scored(explanation, latent, values)

    def _request(
        self, label: str, texts: SteeredTexts, row: int, evidence: LatentEvidence
    ) -> tuple[CompletionRequest, Callable[[Completion], Ending]]:
        """One text with one label behind it."""
        prompt, pieces = load_prompt(self.kind), evidence.store.pieces
        before = shown_before(texts, int(texts.prompt[row]), pieces, self.context_tokens)
        # without quotation marks, so that the end is the label's own
        body = json_text(" ".join(label.split()))[1:-1]
        text = prompt.text(
            {"before": json_text(before), "text": json_text(shown_text(texts, row, pieces)), "label": body}
        )
        request = CompletionRequest(text=text, max_tokens=0, prompt_logprobs=1, prompt_hash=prompt.hash)
        return request, ending_reader(text, body)


def comparable_labels(explanation: Explanation, evidence: LatentEvidence, count: int) -> list[str]:
    """At most ``count`` different labels by the same explainer of other latents that are no neighbours: those nearest in length."""
    near = near_latents(evidence.lens, evidence.latent)
    texts = {
        " ".join(other.text.split()): other.latent
        for other in evidence.other_labels
        if (other.explainer, other.side) == (explanation.explainer, explanation.side)
        and other.latent != evidence.latent
        and other.latent not in near
    }
    own = " ".join(explanation.text.split())
    texts.pop(own, None)
    texts.pop("", None)
    if not own:  # nothing is as long as no label
        return []
    found = sorted(texts, key=lambda text: (abs(math.log(len(text) / len(own))), seed_for(0, evidence.latent, text)))
    return found[:count]


def _pairs(texts: SteeredTexts, latent: int, factor: float) -> tuple[list[tuple[int, int]], int, int]:
    """Rows of (steered, clean) texts of one prompt, of which steering has broken none; how many it has, and how many clean ones
    the same guard would call broken."""
    from sae_core.intervention.text_evidence import CLEAN, Collapse

    collapse = texts.collapse(factor)
    rows = texts.rows_of(latent)
    clean_of = {int(texts.prompt[row]): int(row) for row in rows if texts.steered[row] == CLEAN}
    steered = [int(row) for row in rows if texts.steered[row] == latent]
    broken = [row for row in steered if collapse[row] != Collapse.NONE]
    pairs = [
        (row, clean_of[int(texts.prompt[row])])
        for row in steered
        if collapse[row] == Collapse.NONE and collapse[clean_of[int(texts.prompt[row])]] != Collapse.EMPTY
    ]
    return pairs, len(broken), len([row for row in clean_of.values() if collapse[row] != Collapse.NONE])


def _complete(gains: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The label's gains [n] on texts where it has one, and the others' [m, n] of those that have one on at least half of these;
    texts on which fewer than half of them have one are left out too."""
    known = np.isfinite(gains)
    texts = known[:, 0]
    labels = np.ones(gains.shape[1] - 1, dtype=np.bool_)
    if texts.any():
        labels = known[texts][:, 1:].mean(axis=0) >= 0.5
        if labels.any():
            texts = texts & (known[:, 1:][:, labels].mean(axis=1) >= 0.5)
    return gains[texts, 0], gains[texts][:, 1:][:, labels].T
