"""Precision on written texts: does the latent fire on texts that a language model writes from the label, and not on near misses?

The texts are written from the label alone. Nobody who writes sees a window, an exemplar or an activation, so nothing of what made
the label can leak into its score, and a latent that is rare in the corpus is scored like any other. But what a language model writes
is not what the subject reads: these rates are no precision at the natural rate, and are never called one without "on written texts".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.judging.batching import ask_all
from autointerp.judging.outcome import failed_of, missing_label, spent
from autointerp.judging.written_texts import TooFewTexts, WrittenTexts, usable_texts
from autointerp.llm.answers import read_json
from autointerp.llm.asking import NO_LLMS, LLMNeed, LLMs
from autointerp.llm.protocol import Completion
from autointerp.planning.planned import TEST_TOKENS, PlannedCalls, PlanSizes, planned_calls
from autointerp.prompting.prompt import load_prompt
from autointerp.prompting.quoting import json_text
from autointerp.score import Score, ScoreValue, defined
from autointerp.scorers.base import Scorer
from autointerp.statistics.two_rates import difference, rate
from sae_core.tried_texts import TriedText

_TOKENS_PER_TEXT = 90
"""Room for one text in an answer."""
_ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {
        name: {"type": "array", "items": {"type": "string"}, "maxItems": 200} for name in ("matching", "near")
    },
    "required": ["matching", "near"],
    "additionalProperties": False,
}
"""What is read: a server that is not bound by the schema may give more texts than it was asked for, or fewer."""


class WrittenScorer(Scorer):
    """How much oftener the latent fires on texts written to match the label than on texts written to miss it narrowly."""

    CHANCE: ClassVar[float | None] = 0.0
    NOT_TESTED: ClassVar[str | None] = "it reads no window: its texts are written from each label anew"

    kind: Literal["written"] = "written"
    """Name in the config file."""
    endpoint: str = ""
    """Name of the endpoint that writes the texts; "" for the first one."""
    matching: int = Field(default=10, ge=1, le=50)
    """Texts in which the label holds."""
    near: int = Field(default=10, ge=1, le=50)
    """Near misses: similar texts in which it does not hold."""
    min_texts: int = Field(default=5, ge=1)
    """Texts of either sort that must be there."""

    @model_validator(mode="after")
    def _enough_texts(self) -> WrittenScorer:
        if self.min_texts > min(self.matching, self.near):
            raise ValueError(
                f"min_texts is {self.min_texts}, and {self.matching} matching texts and {self.near} near misses are asked "
                "for: lower it, or ask for more of both"
            )
        return self

    @property
    def writes_texts(self) -> bool:
        """True: it scores what the subject does on texts of its own."""
        return True

    def llm_needs(self) -> list[LLMNeed]:
        """One endpoint."""
        return [LLMNeed(self.endpoint, prompts=(self.kind,))]

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """One call for a label."""
        texts = self.matching + self.near
        call = planned_calls(
            load_prompt("written"),
            self.kind,
            self.endpoint,
            calls=1,
            filled=sizes.label_tokens,
            answer=texts * TEST_TOKENS,
            most_answer=texts * _TOKENS_PER_TEXT,
        )
        return [call]

    async def write(self, explanation: Explanation, llms: LLMs = NO_LLMS) -> WrittenTexts:
        """The texts for one label. Failures: ``too_few_texts``, or the call's own."""
        assert explanation.failure is None, "texts are written from a label"
        llm = llms.of(self.endpoint, self.kind)
        wanted = {"matching": self.matching, "near": self.near}
        request = load_prompt("written").request(
            {"label": json_text(explanation.text), **wanted}, max_tokens=sum(wanted.values()) * _TOKENS_PER_TEXT
        )
        short: list[str] = []

        def read(completion: Completion) -> dict[str, tuple[str, ...]]:
            short.clear()
            try:
                return usable_texts(read_json(completion, _ANSWER), wanted, self.min_texts)
            except TooFewTexts as error:
                short.append(str(error))
                raise

        asked = await ask_all(llm, [(request, read)])
        result = asked.results[0]
        failure = result if isinstance(result, Failure) else None
        if short and failure is not None and failure.kind is FailureKind.UNPARSEABLE:
            failure = Failure(kind=FailureKind.TOO_FEW_TEXTS, message=short[0])
        texts: Mapping[str, tuple[str, ...]] = {} if isinstance(result, Failure) else result
        return WrittenTexts(
            latent=explanation.latent,
            scorer=self.kind,
            explainer=explanation.explainer,
            matching=texts.get("matching", ()),
            near=texts.get("near", ()),
            spent=defined(spent(self.kind, asked, llm.model)),
            failure=failure,
        )

    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        """Counts the texts on which the latent fires. Asks nobody: ``write`` has.

        Failures: ``no_explanation``, ``dead``, ``no_evidence`` (no texts were written, or none was run), ``too_few_texts``, or
        the writing call's own.
        """
        missing = missing_label(self.kind, evidence.latent, explanation)
        if explanation is None or missing is not None:
            assert missing is not None
            return missing
        if evidence.is_dead:
            failure = Failure(kind=FailureKind.DEAD, message="never fires in the corpus")
            return self._failed(evidence, explanation, failure)
        written = next(
            (w for w in evidence.written if (w.scorer, w.explainer) == (self.kind, explanation.explainer)), None
        )
        if written is None:
            message = "no texts were written from this label: that is done in the run, for its own explainers' labels"
            return self._failed(evidence, explanation, Failure(kind=FailureKind.NO_EVIDENCE, message=message))
        tried = {text.text: text for text in evidence.tried if len(text.token_ids)}
        matching = [tried[text] for text in written.matching if text in tried]
        near = [tried[text] for text in written.near if text in tried]
        values = written.spent | self._failures(written, len(matching) + len(near))
        if written.failure is not None:
            return self._failed(evidence, explanation, written.failure, values)
        if min(len(matching), len(near)) < self.min_texts:
            kind = FailureKind.TOO_FEW_TEXTS if tried else FailureKind.NO_EVIDENCE
            message = (
                f"{len(matching)} matching texts and {len(near)} near misses were run on the subject, of "
                f"{len(written.matching)} and {len(written.near)} that were written; {self.min_texts} of each are needed"
            )
            return self._failed(evidence, explanation, Failure(kind=kind, message=message), values)
        return Score(
            latent=evidence.latent,
            scorer=self.kind,
            explainer=explanation.explainer,
            values=defined(values | _rates(matching, near)),
        )

    def _failures(self, written: WrittenTexts, run: int) -> dict[str, ScoreValue]:
        """Texts that were run, and those that were asked for and were not, by why."""
        wanted = self.matching + self.near
        why = FailureKind.UNPARSEABLE if written.failure is None else written.failure.kind
        lost = [why] * (wanted - len(written.texts)) + [FailureKind.NO_EVIDENCE] * (len(written.texts) - run)
        return {f"{self.kind}_tried": run, **failed_of(self.kind, lost)}

    def _failed(
        self,
        evidence: LatentEvidence,
        explanation: Explanation,
        failure: Failure,
        values: dict[str, ScoreValue] | None = None,
    ) -> Score:
        explainer = explanation.explainer
        return Score(
            latent=evidence.latent, scorer=self.kind, explainer=explainer, values=defined(values or {}), failure=failure
        )


def _rates(matching: Sequence[TriedText], near: Sequence[TriedText]) -> dict[str, ScoreValue]:
    """The two shares and their difference with 95% intervals, and the texts that were told wrong."""
    precision = rate(sum(text.fires for text in matching), len(matching))
    near_rate = rate(sum(text.fires for text in near), len(near))
    values: dict[str, ScoreValue] = {}
    figures = {"score": difference(precision, near_rate), "precision": precision, "near_rate": near_rate}
    for name, figure in figures.items():
        values |= {
            f"written_{name}": figure.value,
            f"written_{name}_low": figure.low,
            f"written_{name}_high": figure.high,
        }
    return values | {
        "written_matching": len(matching),
        "written_near": len(near),
        "written_silent_texts": tuple(text.text for text in matching if not text.fires),
        "written_fired_near_texts": tuple(text.text for text in near if text.fires),
    }
