"""What the scorers share that ask a judge about windows, several in a call."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from pydantic import Field

from autointerp.llm.asking import LLM, LLMNeed
from autointerp.llm.protocol import Capability
from autointerp.planning.planned import (
    ITEM_TOKENS,
    LABEL_KEY_TOKENS,
    PlannedCalls,
    PlanSizes,
    num_calls,
    planned_calls,
)
from autointerp.prompting.prompt import load_prompt
from autointerp.scorers.base import Scorer


class WindowJudge(Scorer):
    """A scorer that asks a judge yes-or-no questions about windows."""

    endpoint: str = ""
    """Name of the judge's endpoint; "" for the first one."""
    per_call: int = Field(default=20, ge=2)
    """Windows in one call."""
    context_tokens: int = Field(default=0, ge=0)
    """Tokens before each window that are shown with it, of those that the store keeps."""
    logprobs: Literal["auto", "never", "always"] = "auto"
    """Whether answers get probabilities: where the server gives log-probabilities, never, or always (a server without
    them is refused)."""
    min_windows: int = Field(default=5, ge=1)
    """Windows that must be there on either side of the question."""
    leak_free: bool = True
    """Whether only windows of the scored side are judged. Without it windows of all sides are, those that the explainer was
    shown among them, as other tools do it: for comparison with their scores; marked by ``<kind>_leak`` = 1."""
    seed: int = 0
    """Seed of the sample of windows and of their order."""

    def llm_needs(self) -> list[LLMNeed]:
        """One endpoint, with log-probabilities where they are a must."""
        if self.logprobs != "always":
            return [LLMNeed(self.endpoint, prompts=(self.kind,))]
        instead = 'set logprobs = "auto" or "never"'
        return [LLMNeed(self.endpoint, frozenset({Capability.LOGPROBS}), instead, (self.kind,))]

    def _planned(
        self, prompt: str, sizes: PlanSizes, units: int, unit: int = 1, each: float = 0.0
    ) -> list[PlannedCalls]:
        """Calls about ``units`` of ``unit`` windows that stay together, with ``each`` further tokens a window."""
        calls = num_calls(units, unit, self.per_call)
        windows = units * unit / calls
        call = planned_calls(
            load_prompt(prompt),
            self.kind,
            self.endpoint,
            calls=calls,
            filled=sizes.label_tokens + sizes.windows(windows, context_tokens=self.context_tokens, each=each),
            answer=ITEM_TOKENS * windows + LABEL_KEY_TOKENS,
            most_answer=6 * math.ceil(units / calls) * unit + 40,
        )
        return [call]

    def planned_windows(self, sizes: PlanSizes, calls: float, windows: float) -> PlannedCalls:
        """``calls`` with the prompt of this judge's kind about ``windows`` windows in all; where these only join other calls, 0."""
        call = planned_calls(
            load_prompt(self.kind),
            self.kind,
            self.endpoint,
            calls=calls,
            filled=sizes.label_tokens + sizes.windows(0),
            answer=LABEL_KEY_TOKENS,
            most_answer=6 * self.per_call + 40,
        )
        each = sizes.windows(1, context_tokens=self.context_tokens) - sizes.windows(0)
        return replace(call, joined_tokens=windows * each, joined_answer_tokens=windows * ITEM_TOKENS)

    def wants_logprobs(self, llm: LLM) -> Literal[False, "auto", "always"]:
        """Whether this judge is asked for log-probabilities, and must give them."""
        if self.logprobs == "always":
            return "always"
        return "auto" if self.logprobs == "auto" and Capability.LOGPROBS in llm.capabilities else False
