"""Which window does not belong? Four activating windows and one other; tests the latent, not a label (METHODS 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.judging.batching import deal
from autointerp.judging.choices import Choice, judge_choices, spread
from autointerp.judging.outcome import accuracy_score, too_few
from autointerp.llm.asking import NO_LLMS, LLMNeed, LLMs
from autointerp.planning.planned import (
    HEADING_TOKENS,
    ITEM_TOKENS,
    LABEL_KEY_TOKENS,
    PlannedCalls,
    PlanSizes,
    num_calls,
    planned_calls,
)
from autointerp.prompting.prompt import load_prompt
from autointerp.prompting.quoting import quote_windows
from autointerp.sampling.firing import sample_firing
from autointerp.sampling.silent import sample_silent, silent_strata, uniform_counts
from autointerp.score import Score, ScoreValue
from autointerp.scorers.base import Scorer
from sae_core.hashing import seed_for

_FIRING = 4
"""Activating windows of a set; with the other one as many as the prompt names."""


class IntruderScorer(Scorer):
    """Share of sets in which a judge finds the one window where the latent is silent."""

    CHANCE: ClassVar[float | None] = 0.2

    kind: Literal["intruder"] = "intruder"
    """Name in the config file."""
    endpoint: str = ""
    """Name of the judge's endpoint; "" for the first one."""
    items: int = Field(default=10, ge=1)
    """Sets of five windows; no window stands in two."""
    per_call: int = Field(default=5, ge=1)
    """Sets in one call."""
    context_tokens: int = Field(default=0, ge=0)
    """Tokens before each window that are shown with it, of those that the store keeps."""
    min_items: int = Field(default=3, ge=1)
    """Sets that must be there."""
    seed: int = 0
    """Seed of the sample of windows and of their order."""

    @property
    def judges_explanation(self) -> bool:
        """It asks whether what the latent fires on is one thing at all."""
        return False

    def llm_needs(self) -> list[LLMNeed]:
        """One endpoint."""
        return [LLMNeed(self.endpoint, prompts=(self.kind,))]

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """As many calls as the sets take."""
        calls = num_calls(self.items, 1, self.per_call)
        sets = self.items / calls
        each = sizes.windows(_FIRING + 1, context_tokens=self.context_tokens) + HEADING_TOKENS
        call = planned_calls(
            load_prompt("intruder"),
            self.kind,
            self.endpoint,
            calls=calls,
            filled=sets * each,
            answer=ITEM_TOKENS * sets + LABEL_KEY_TOKENS,
            most_answer=6 * math.ceil(sets) + 40,
        )
        return [call]

    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        """Judges the latent on the scored side. Failures: ``dead``, ``too_few_windows``, or the judge's own."""
        side, latent = evidence.scored_side, evidence.latent
        strata = silent_strata(evidence, side)
        rng = np.random.default_rng(seed_for(self.seed, "intruder", latent))
        firing = sample_firing(evidence, side, _FIRING * self.items, self.seed)
        silent = sample_silent(strata, evidence, uniform_counts(strata, self.items, rng), self.seed)
        num_items = min(self.items, len(firing) // _FIRING, len(silent))
        values: dict[str, ScoreValue] = {
            "intruder_chance": 1 / (_FIRING + 1),
            "intruder_share_skipped": strata.share_skipped,
        }
        if num_items < self.min_items:
            found = (
                f"{len(firing)} activating and {len(silent)} non-activating windows may be judged, "
                f"{_FIRING * self.min_items} and {self.min_items} are needed"
            )
            return too_few(self.kind, evidence, None, found, values)

        choices = []
        for item, right in enumerate(spread(num_items, _FIRING + 1, rng)):
            windows = firing[_FIRING * item : _FIRING * (item + 1)]
            company = tuple(window.id for window in windows)
            windows.insert(right - 1, silent[item])
            choices.append(Choice((tuple(windows),), right, silent[item], company))

        def values_of(call: Sequence[Choice]) -> dict[str, Any]:
            quoted = (
                quote_windows(choice.sets[0], evidence.store.pieces, context_tokens=self.context_tokens).block
                for choice in call
            )
            sets = "\n".join(f"Set {number}\n{block}" for number, block in enumerate(quoted, 1))
            return {"sets": sets, "count": len(call)}

        llm = llms.of(self.endpoint, self.kind)
        calls = deal([[choice] for choice in choices], self.per_call, rng)
        verdicts, asked = await judge_choices(llm, load_prompt("intruder"), "intruders", calls, values_of)
        return accuracy_score(self.kind, latent, None, verdicts, asked, llm.model, values)
