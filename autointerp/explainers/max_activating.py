"""The max_activating explainer: a language model reads windows in which the latent fires (METHODS 2)."""

from __future__ import annotations

from typing import Literal

from autointerp.evidence import LatentEvidence
from autointerp.explainers.exemplar_explainer import ExemplarExplainer
from autointerp.explainers.label_rules import LabelRules
from autointerp.explainers.llm_explainer import ask_for_label
from autointerp.explanation import Explanation
from autointerp.llm.asking import NO_LLMS, LLMs
from autointerp.planning.planned import PlannedCalls, PlanSizes
from autointerp.prompting.prompt import load_prompt


class MaxActivatingExplainer(ExemplarExplainer):
    """One call: firing windows with their firing tokens marked, answered with one line."""

    kind: Literal["max_activating"] = "max_activating"
    """Name in the config file."""

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """One call."""
        return self._planned("max_activating", sizes, self._planned_windows(sizes))

    async def explain(self, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Explanation:
        """A label; ``dead``, ``too_few_windows``, ``bad_label`` and those of the call are its failures."""
        if evidence.is_dead:
            return self._dead(evidence)
        windows = self._choose(evidence)
        if not windows:
            return self._too_few(evidence)
        llm = llms.of(self.endpoint, self.kind)
        block = self._block(evidence, windows)
        prompt = load_prompt("max_activating")
        request = prompt.request({"windows": block.block}, **self._parameters(llm))
        rules = LabelRules(self._texts(evidence, windows), (block.delimiter,))
        return self._explained(evidence, await ask_for_label(llm, request, rules), prompt.hash, windows)
