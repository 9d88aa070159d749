"""What judges of texts written under steering have in common: which texts they see, and what stands in the place of a figure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from autointerp.evidence import EvidenceRequest, LatentEvidence, SteeredTextsRequest
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.judging.batching import Asked
from autointerp.judging.outcome import missing_label
from autointerp.llm.asking import NO_LLMS, LLMNeed, LLMs
from autointerp.planning.planned import PlanSizes
from autointerp.score import Score, ScoreValue, defined
from autointerp.scorers.base import Scorer
from sae_core.token_text import TokenText

if TYPE_CHECKING:
    from sae_core.intervention.text_evidence import SteeredTexts
    from sae_core.lens_evidence import LensEvidence

STEERED_KINDS = ("steered_surprisal", "steered_choice", "steered_rating")
"""Kinds of the scorers of this package that look at a sample of the latents."""
_LEAST_COSINE = 0.1
OUTPUT_LABEL = "output_label_"
"""Beginning of the names of values that are about a label of what the latent does; the two sorts are never averaged."""


class SteeredJudge(Scorer, ABC):
    """A language model that reads what the subject writes while the latent is steered, and says how far a label tells it.

    It judges labels of what the latent fires on, and those of what it does; values of the latter begin with ``output_label_``. It
    looks at a random sample of the latents that are steered.
    """

    NOT_TESTED: ClassVar[str | None] = "it reads what the latent does to text, not windows in which a label could hold"
    TEXTS: ClassVar[Literal["steered_texts", "steered_answers"]] = "steered_texts"
    """Kind of the texts that it reads."""

    endpoint: str = ""
    """Name of the judge's endpoint; "" for the first one."""
    latents: int = Field(default=32, ge=1)
    """Size of the random sample of each coder's latents that is judged, taken from those that ``intervention`` steers."""
    temperature: float = Field(default=1.0, ge=0)
    """At which the subject writes."""
    collapse_factor: float = Field(default=20.0, gt=1)
    """A text whose perplexity to the clean subject is so many times that of clean texts is no effect: steering broke the subject."""

    @property
    def reads_windows(self) -> bool:
        """False: its texts are of the score side."""
        return False

    @property
    def sample(self) -> int | None:
        """See the field."""
        return self.latents

    def can_judge(self, explanation: Explanation) -> bool:
        """Labels of either side: the question is what the latent does."""
        return True

    def looks_at(self, evidence: LatentEvidence) -> bool:
        """Latents of the sample."""
        return self.TEXTS in evidence.in_text_sample

    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        """Judges one label on the latent's texts.

        Failures: ``no_explanation``, ``no_evidence`` (no texts were made), ``unreachable`` (no strength meets the target),
        ``too_few_windows``, ``too_few_texts``, ``too_few_latents``, ``collapsed``, or the judge's own.
        """
        missing = missing_label(self.kind, evidence.latent, explanation)
        if explanation is None or missing is not None:
            assert missing is not None
            return missing
        if not explanation.text.strip():
            blank = Failure(kind=FailureKind.NO_EXPLANATION, message="the label is blank: there is nothing to score")
            return self._scored(explanation, evidence.latent, {}, blank)
        texts: SteeredTexts | None = getattr(evidence, self.TEXTS)
        if (failure := _no_texts(texts, evidence.latent)) is not None:
            return self._scored(explanation, evidence.latent, {}, failure)
        assert texts is not None
        return await self._judge(explanation, evidence, texts, llms)

    @abstractmethod
    async def _judge(
        self, explanation: Explanation, evidence: LatentEvidence, texts: SteeredTexts, llms: LLMs
    ) -> Score:
        """The score of a label of a latent that has texts."""

    def _scored(
        self,
        explanation: Explanation,
        latent: int,
        values: Mapping[str, ScoreValue],
        failure: Failure | None = None,
    ) -> Score:
        """The score, its values named by the label's side."""
        before = OUTPUT_LABEL if explanation.side == "output" else ""
        named = {name if name.startswith("judge_") else before + name: value for name, value in values.items()}
        return Score(
            latent=latent,
            scorer=self.kind,
            explainer=explanation.explainer,
            values=defined(named),
            failure=failure,
        )


class SteeredTextsJudge(SteeredJudge, ABC):
    """A judge of short continuations of the latent's own prompts."""

    texts: int = Field(default=30, ge=2)
    """Prompts: windows of the score side in their contexts, cut after the first token on which the latent fires."""
    new_tokens: int = Field(default=8, ge=1)
    """Tokens that are written."""
    target: float | None = Field(default=None, gt=0)
    """KL in nats at which latents are steered, one of ``intervention``'s ``steering_targets``; by default the largest of them."""
    context_tokens: int = Field(default=16, ge=0)
    """Tokens before a continuation that are shown with it."""
    min_texts: int = Field(default=10, ge=2)
    """Texts that must be there, steering having broken none of them."""

    def needs(self) -> list[EvidenceRequest]:
        """The texts."""
        request = SteeredTextsRequest(
            latents=self.latents,
            texts=self.texts,
            new_tokens=self.new_tokens,
            target=self.target,
            temperature=self.temperature,
        )
        return [request]

    def _too_few(self, usable: int, collapsed: int) -> Failure | None:
        """Why there is no figure with so many usable texts and so many that are broken; None where there is one."""
        if usable >= self.min_texts:
            return None
        kind = FailureKind.COLLAPSED if usable + collapsed >= self.min_texts else FailureKind.TOO_FEW_TEXTS
        return Failure(
            kind=kind,
            message=f"of {usable + collapsed} texts written under steering {collapsed} are broken (hardly a text, or the same again and "
            f"again) and {usable} can be judged; {self.min_texts} are needed",
        )

    def _text_tokens(self, sizes: PlanSizes, tokens: int) -> float:
        """Prompt tokens of so many of the subject's."""
        return tokens * sizes.window_tokens / sizes.window_length


def _no_texts(texts: SteeredTexts | None, latent: int) -> Failure | None:
    """Why a latent of the sample has no texts; None where it has."""
    from sae_core.intervention.text_evidence import TextState

    state = None if texts is None else texts.state_of(latent)
    if state is None:
        return Failure(
            kind=FailureKind.NO_EVIDENCE, message="the stage that has texts written left none of this latent"
        )
    if state is TextState.UNREACHABLE:
        message = "no strength of steering meets the target, so no texts were written"
        return Failure(kind=FailureKind.UNREACHABLE, message=message)
    if state is TextState.TOO_FEW_WINDOWS:
        message = "it fires in no window that a strength could be found in, or a text begin after"
        return Failure(kind=FailureKind.TOO_FEW_WINDOWS, message=message)
    if state is TextState.NO_ROOM:
        message = (
            "every instruction is too long for the subject: it must fit into the model's context together with new_tokens "
            "tokens of an answer"
        )
        return Failure(kind=FailureKind.TOO_FEW_TEXTS, message=message)
    return None


def near_latents(lens: LensEvidence | None, latent: int) -> frozenset[int]:
    """Decoder neighbours that do much the same: in a small coder the nearest directions may have nothing in common."""
    if lens is None:
        return frozenset()
    near = lens.neighbours[latent][np.abs(lens.cosines[latent]) >= _LEAST_COSINE]
    return frozenset(int(neighbour) for neighbour in near if neighbour >= 0)


def shown_before(texts: SteeredTexts, prompt: int, pieces: TokenText, most: int) -> str:
    """What is shown of a prompt: what it asks for, or its last ``most`` tokens."""
    if texts.instructions:
        return texts.instructions[prompt]
    ids = [int(token) for token in texts.prompt_ids(prompt) if int(token) not in pieces.special]
    return pieces.text(ids[max(0, len(ids) - most) :])


def shown_text(texts: SteeredTexts, row: int, pieces: TokenText) -> str:
    """What was written."""
    return pieces.text(texts.text_ids(row).tolist())


def no_answers(asked: Asked[Any], what: str) -> Failure:
    """The failure of a score to which too few calls were answered: the most common one of theirs."""
    failures = asked.failures
    kinds = [failure.kind for failure in failures]
    kind = max(kinds, key=kinds.count) if kinds else FailureKind.UNPARSEABLE
    said = next((failure.message for failure in failures if failure.kind is kind), "")
    return Failure(
        kind=kind, message=f"{what}: {len(failures)} of {asked.num_calls} calls failed ({kind.value}: {said})"
    )


def judge_need(endpoint: str, *prompts: str) -> LLMNeed:
    """One endpoint, whatever it can do."""
    return LLMNeed(endpoint, prompts=prompts)
