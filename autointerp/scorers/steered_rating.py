"""AxBench's figure of steering, for comparison: concept, instruction and fluency, each from 0 to 2, and their harmonic mean (METHODS 5).

The strength is chosen on one half of the instructions and reported on the other: the best of several, on what it was chosen by, is too
good to be true.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from autointerp.evidence import EvidenceRequest, LatentEvidence, SteeredAnswersRequest
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.judging.batching import ask_all
from autointerp.judging.outcome import failed_of, spent
from autointerp.judging.steered_judge import SteeredJudge, judge_need, no_answers, shown_before, shown_text
from autointerp.llm.answers import read_json
from autointerp.llm.asking import LLMNeed, LLMs
from autointerp.llm.protocol import Completion, CompletionRequest
from autointerp.planning.planned import (
    BLOCK_TOKENS,
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
from autointerp.statistics.label_effect import chosen_strength, harmonic_mean
from sae_core.hashing import seed_for

if TYPE_CHECKING:
    from sae_core.intervention.text_evidence import SteeredTexts

_CONCEPT, _FLUENCY = "steered_concept", "steered_fluency"
_KEYS = {_CONCEPT: ("ratings",), _FLUENCY: ("instruction", "fluency")}
Ratings = tuple[tuple[int, ...], ...]
"""A tuple a key of the prompt's answer, each with a rating a text."""


class SteeredRatingScorer(SteeredJudge):
    """Harmonic mean of what a judge says of concept, instruction and fluency in answers written under steering, from 0 to 2."""

    TEXTS: ClassVar[Literal["steered_texts", "steered_answers"]] = "steered_answers"

    kind: Literal["steered_rating"] = "steered_rating"
    """Name in the config file."""
    instructions: str = ""
    """File with an instruction a line; by default our own list, or beginnings of the corpus' text for a subject without a chat template."""
    texts: int = Field(default=10, ge=4)
    """Instructions: the strength is chosen on half of them."""
    new_tokens: int = Field(default=48, ge=1)
    """Tokens of an answer."""
    per_call: int = Field(default=5, ge=1)
    """Texts in one call."""
    context_tokens: int = Field(default=32, ge=0)
    """Tokens shown of the corpus' text before an answer that goes on from it."""
    seed: int = 0
    """Seed of the halves and of the order of texts."""

    def needs(self) -> list[EvidenceRequest]:
        """The answers."""
        request = SteeredAnswersRequest(
            latents=self.latents,
            texts=self.texts,
            new_tokens=self.new_tokens,
            instructions=self.instructions,
            temperature=self.temperature,
        )
        return [request]

    def check(self) -> None:
        """Read the instructions. Errors: ConfigError for a file that is not there, or that has too few."""
        from autointerp.judging.instructions import read_instructions

        read_instructions(self.instructions, self.texts)

    def llm_needs(self) -> list[LLMNeed]:
        """One endpoint."""
        return [judge_need(self.endpoint, _CONCEPT, _FLUENCY)]

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """Two sorts of calls, with every strength of steering that is aimed at; what is said without the label is said once for all labels."""
        texts = self.texts * sizes.steering_targets
        calls = -(-texts // self.per_call)
        each = texts / calls
        one = self.new_tokens * sizes.window_tokens / sizes.window_length + LINE_TOKENS
        before = self.context_tokens * sizes.window_tokens / sizes.window_length
        found = []
        for name, per_text, label, ratings in (
            (_CONCEPT, one, sizes.label_tokens, 1),
            (_FLUENCY, one + before + LINE_TOKENS, 0.0, 2),
        ):
            call = planned_calls(
                load_prompt(name),
                self.kind,
                self.endpoint,
                calls=calls,
                filled=label + BLOCK_TOKENS + each * per_text,
                answer=ratings * (ITEM_TOKENS * each + LABEL_KEY_TOKENS),
                most_answer=ratings * (6 * math.ceil(each) + 20) + 20,
            )
            found.append(call)
        return found

    async def _judge(
        self, explanation: Explanation, evidence: LatentEvidence, texts: SteeredTexts, llms: LLMs
    ) -> Score:
        """See the base class. A broken text is not shown: its fluency, and with it its harmonic mean, is 0."""
        from sae_core.intervention.text_evidence import Collapse

        latent = evidence.latent
        collapse = texts.collapse(self.collapse_factor)
        rows = [int(row) for row in texts.rows_of(latent) if texts.steered[row] == latent]
        broken = [row for row in rows if collapse[row] != Collapse.NONE]
        rng = np.random.default_rng(seed_for(self.seed, self.kind, latent))
        sound = [row for row in rows if collapse[row] == Collapse.NONE]
        sound = [sound[i] for i in rng.permutation(len(sound))]
        values: dict[str, ScoreValue] = {f"{self.kind}_collapsed": len(broken), f"{self.kind}_texts": len(rows)}
        if not sound:
            message = f"steering has broken all {len(rows)} answers, at every strength"
            return self._scored(explanation, latent, values, Failure(kind=FailureKind.COLLAPSED, message=message))
        calls = [sound[at :: -(-len(sound) // self.per_call)] for at in range(-(-len(sound) // self.per_call))]
        llm = llms.of(self.endpoint, self.kind)
        asked = await ask_all(
            llm, [self._request(name, call, explanation, evidence, texts) for name in _KEYS for call in calls]
        )
        rated: dict[int, list[float]] = {row: [math.nan] * 3 for row in sound}
        lost = []
        for at, name in enumerate(_KEYS):
            for call, result in zip(calls, asked.results[at * len(calls) : (at + 1) * len(calls)], strict=True):
                if isinstance(result, Failure):
                    lost += [result.kind] * len(call)
                    continue
                for given, key in zip(result, range(at, at + len(_KEYS[name])), strict=True):
                    for row, rating in zip(call, given, strict=True):
                        rated[row][key] = float(rating)
        values |= spent(self.kind, asked, llm.model)
        values |= {f"{self.kind}_tried": 2 * len(sound) - len(lost), **failed_of(self.kind, lost)}
        means = {row: harmonic_mean(r) if all(map(math.isfinite, r)) else math.nan for row, r in rated.items()}
        means |= dict.fromkeys(broken, 0.0)
        reported = self._reported(texts, rows, means, rated)
        if reported is None:
            return self._scored(explanation, latent, values, no_answers(asked, "too few answers were rated"))
        return self._scored(explanation, latent, values | reported)

    def _reported(
        self, texts: SteeredTexts, rows: Sequence[int], means: dict[int, float], rated: dict[int, list[float]]
    ) -> dict[str, ScoreValue] | None:
        """The strength that one half of the instructions chooses, on the other half; None where a half is without ratings."""
        targets = sorted({float(texts.target[row]) for row in rows})
        prompts = sorted({int(texts.prompt[row]) for row in rows})
        chooses = halves(len(prompts), self.seed)
        table = np.full((len(targets), len(prompts)), np.nan)
        place = {(targets.index(float(texts.target[row])), prompts.index(int(texts.prompt[row]))): row for row in rows}
        for at, row in place.items():
            table[at] = means[row]
        found = chosen_strength(table, chooses)
        if found is None:
            return None
        shown = [
            rated[place[found.strength, i]]
            for i in np.flatnonzero(~chooses).tolist()
            if (found.strength, i) in place and place[found.strength, i] in rated
        ]
        kinds = np.array(shown, dtype=np.float64).reshape(-1, 3)
        values: dict[str, ScoreValue] = {
            f"{self.kind}_score": found.value,
            f"{self.kind}_low": found.low,
            f"{self.kind}_high": found.high,
            f"{self.kind}_target": targets[found.strength],
            f"{self.kind}_instructions": found.num_instructions,
        }
        for name, column in zip(("concept", "instruction", "fluency"), kinds.T, strict=True):
            known = column[np.isfinite(column)]
            values[f"{self.kind}_{name}"] = float(known.mean()) if len(known) else None
        return values

    def _request(
        self, name: str, call: Sequence[int], explanation: Explanation, evidence: LatentEvidence, texts: SteeredTexts
    ) -> tuple[CompletionRequest, Callable[[Completion], Ratings]]:
        pieces, keys = evidence.store.pieces, _KEYS[name]
        lines = [shown_text(texts, row, pieces) for row in call]
        notes = []
        if name == _FLUENCY:
            before = (shown_before(texts, int(texts.prompt[row]), pieces, self.context_tokens) for row in call)
            notes = [f"after {json_text(text)}" for text in before]
        given = {
            "label": json_text(explanation.text),
            "texts": quote_lines(lines, notes=notes).block,
            "count": len(call),
        }
        request = load_prompt(name).request(given, max_tokens=len(keys) * (6 * len(call) + 20) + 20)
        assert request.json_schema is not None, "the prompt of a judge has an answer schema"

        def read(completion: Completion, schema: dict[str, Any] = request.json_schema) -> Ratings:
            answer = read_json(completion, schema)
            return tuple(tuple(int(rating) for rating in answer[key]) for key in keys)

        return request, read


def halves(count: int, seed: int) -> NDArray[np.bool_]:
    """[count] instructions on which the strength is chosen: a random half, the same for every latent and label."""
    chooses = np.zeros(count, dtype=np.bool_)
    chooses[np.random.default_rng(seed_for(seed, "instructions that choose")).permutation(count)[: count // 2]] = True
    return chooses
