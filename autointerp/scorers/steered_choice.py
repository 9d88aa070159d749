"""Which of three texts was written with the latent steered? For judges without log-probabilities (METHODS 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.judging.batching import ask_all
from autointerp.judging.choices import spread
from autointerp.judging.outcome import failed_of, spent
from autointerp.judging.steered_judge import SteeredTextsJudge, judge_need, no_answers, shown_before, shown_text
from autointerp.llm.answers import read_json
from autointerp.llm.asking import LLMNeed, LLMs
from autointerp.llm.protocol import Completion
from autointerp.planning.planned import (
    BLOCK_TOKENS,
    HEADING_TOKENS,
    ITEM_TOKENS,
    LABEL_KEY_TOKENS,
    LINE_TOKENS,
    PlannedCalls,
    PlanSizes,
    planned_calls,
)
from autointerp.prompting.prompt import load_prompt
from autointerp.prompting.quoting import json_text, quote_lines
from autointerp.score import Score, ScoreValue
from autointerp.statistics.two_rates import rate
from sae_core.hashing import seed_for

if TYPE_CHECKING:
    from sae_core.intervention.text_evidence import SteeredTexts

_TEXTS = 3
"""Of a question, as many as the prompt names."""


@dataclass(frozen=True, slots=True)
class _Question:
    """Three texts of one prompt."""

    rows: tuple[int, ...]
    """In the order in which they are shown."""
    right: int
    """Number of the latent's own, from 1 on."""


class SteeredChoiceScorer(SteeredTextsJudge):
    """Share of questions in which a judge finds, by the label, the text that was written with the latent steered."""

    CHANCE: ClassVar[float | None] = 1 / _TEXTS

    kind: Literal["steered_choice"] = "steered_choice"
    """Name in the config file."""
    per_call: int = Field(default=5, ge=1)
    """Questions in one call."""
    seed: int = 0
    """Seed of the order of texts and questions."""

    def llm_needs(self) -> list[LLMNeed]:
        """One endpoint."""
        return [judge_need(self.endpoint, self.kind)]

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """As many calls as the questions take."""
        calls = -(-self.texts // self.per_call)
        questions = self.texts / calls
        one = self._text_tokens(sizes, self.context_tokens + _TEXTS * self.new_tokens) + _TEXTS * LINE_TOKENS
        call = planned_calls(
            load_prompt(self.kind),
            self.kind,
            self.endpoint,
            calls=calls,
            filled=sizes.label_tokens + questions * (one + BLOCK_TOKENS + HEADING_TOKENS),
            answer=ITEM_TOKENS * questions + LABEL_KEY_TOKENS,
            most_answer=6 * math.ceil(questions) + 40,
        )
        return [call]

    async def _judge(
        self, explanation: Explanation, evidence: LatentEvidence, texts: SteeredTexts, llms: LLMs
    ) -> Score:
        """See the base class; ``too_few_latents`` where no text can stand beside the latent's own. A question is left out where
        steering has broken any of its texts."""
        latent = evidence.latent
        if (failure := _no_others(texts, latent)) is not None:
            return self._scored(explanation, latent, {f"{self.kind}_chance": 1 / _TEXTS}, failure)
        questions, collapsed = self._questions(texts, latent)
        values: dict[str, ScoreValue] = {
            f"{self.kind}_chance": 1 / _TEXTS,
            f"{self.kind}_collapsed": collapsed,
        }
        if (failure := self._too_few(len(questions), collapsed)) is not None:
            return self._scored(explanation, latent, values, failure)
        llm, prompt = llms.of(self.endpoint, self.kind), load_prompt(self.kind)
        calls = [
            questions[at :: -(-len(questions) // self.per_call)] for at in range(-(-len(questions) // self.per_call))
        ]
        requests = []
        for call in calls:
            given = {
                "label": json_text(explanation.text),
                "questions": self._quoted(call, texts, evidence),
                "count": len(call),
            }
            request = prompt.request(given, max_tokens=6 * len(call) + 40)
            assert request.json_schema is not None, "the prompt of a judge has an answer schema"

            def read(completion: Completion, schema: dict[str, Any] = request.json_schema) -> list[int]:
                return [int(number) for number in read_json(completion, schema)["texts"]]

            requests.append((request, read))
        asked = await ask_all(llm, requests)
        right, lost = [], []
        for call, result in zip(calls, asked.results, strict=True):
            if isinstance(result, Failure):
                lost += [result.kind] * len(call)
            else:
                right += [said == question.right for said, question in zip(result, call, strict=True)]
        values |= spent(self.kind, asked, llm.model)
        values |= {f"{self.kind}_tried": len(right), **failed_of(self.kind, lost)}
        if not right:
            return self._scored(explanation, latent, values, no_answers(asked, "no question was answered"))
        found = rate(sum(right), len(right))
        values |= {
            f"{self.kind}_score": found.value,
            f"{self.kind}_low": found.low,
            f"{self.kind}_high": found.high,
        }
        return self._scored(explanation, latent, values)

    def _questions(self, texts: SteeredTexts, latent: int) -> tuple[list[_Question], int]:
        """Questions in random order, and the prompts of which no question can be made because a text is broken."""
        from sae_core.intervention.text_evidence import CLEAN, Collapse

        collapse = texts.collapse(self.collapse_factor)
        rng = np.random.default_rng(seed_for(self.seed, self.kind, latent))
        of_prompt: dict[int, list[int]] = {}
        for row in texts.rows_of(latent).tolist():
            if texts.steered[row] != CLEAN:
                of_prompt.setdefault(int(texts.prompt[row]), []).append(row)
        complete = [rows for rows in of_prompt.values() if len(rows) == _TEXTS]
        sound = [rows for rows in complete if all(collapse[row] == Collapse.NONE for row in rows)]
        questions = []
        for rows, right in zip(sound, spread(len(sound), _TEXTS, rng), strict=True):
            own = next(row for row in rows if texts.steered[row] == latent)
            shown = [rows[i] for i in rng.permutation(_TEXTS) if rows[i] != own]
            shown.insert(right - 1, own)
            questions.append(_Question(tuple(shown), right))
        return [questions[i] for i in rng.permutation(len(questions))], len(complete) - len(sound)

    def _quoted(self, call: Sequence[_Question], texts: SteeredTexts, evidence: LatentEvidence) -> str:
        """The questions of a call."""
        pieces = evidence.store.pieces
        parts = []
        for number, question in enumerate(call, 1):
            before = shown_before(texts, int(texts.prompt[question.rows[0]]), pieces, self.context_tokens)
            block = quote_lines([shown_text(texts, row, pieces) for row in question.rows]).block
            parts.append(f"Question {number}, after {json_text(before)}\n{block}")
        return "\n".join(parts)


def _no_others(texts: SteeredTexts, latent: int) -> Failure | None:
    """Why no question can be asked of a latent that has texts: too few others were steered beside it; None where enough were."""
    from sae_core.intervention.text_evidence import CLEAN

    steered = {int(other) for other in texts.steered[texts.rows_of(latent)]} - {CLEAN, latent}
    if len(steered) >= _TEXTS - 1:
        return None
    return Failure(
        kind=FailureKind.TOO_FEW_LATENTS,
        message=f"{len(steered)} other latents of the sample reach the target and are no neighbours, and {_TEXTS - 1} are needed for the "
        "wrong texts of a question: raise latents, and steered_latents of the scorer 'intervention' with it",
    )
