"""The contrastive explainer: beside windows in which the latent fires, some that look alike and in which it does not."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field

from autointerp.evidence import EvidenceRequest, LatentEvidence, LensRequest
from autointerp.explainers.exemplar_explainer import ExemplarExplainer
from autointerp.explainers.label_rules import LabelRules
from autointerp.explainers.llm_explainer import ask_for_label
from autointerp.explanation import Explanation
from autointerp.llm.asking import NO_LLMS, LLMs
from autointerp.planning.planned import PlannedCalls, PlanSizes
from autointerp.prompting.prompt import load_prompt
from autointerp.prompting.quoting import quote_windows
from autointerp.sampling.silent import allocate, sample_silent, silent_strata
from autointerp.sampling.window import ShownWindow, Stratum
from sae_core.records import Side

_SHARES = {Stratum.NEIGHBOUR: 0.5, Stratum.TOKEN: 0.5}


class ContrastiveExplainer(ExemplarExplainer):
    """One call: firing windows, then silent ones in which a neighbour fires or the latent's commonest token stands."""

    kind: Literal["contrastive"] = "contrastive"
    """Name in the config file."""
    exemplars: int = Field(default=16, ge=1, le=500)
    """Firing windows that are shown."""
    silent: int = Field(default=8, ge=1, le=200)
    """Silent windows that are shown: half with a firing neighbour, half with the token; random ones where these are too few."""
    neighbours: int = Field(default=10, ge=1)
    """Nearest decoder rows that count as neighbours."""
    seed: int = 0
    """Seed of the choice of silent windows."""

    def needs(self) -> list[EvidenceRequest]:
        """Which latents are neighbours."""
        return [LensRequest(neighbours=self.neighbours)]

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """One call."""
        silent = sizes.windows(self.silent, context_tokens=self.context_tokens)
        return self._planned("contrastive", sizes, self._planned_windows(sizes) + silent)

    async def explain(self, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Explanation:
        """A label; ``dead``, ``too_few_windows``, ``bad_label`` and those of the call are its failures.

        ``payload["silent"]`` has the numbers of silent windows by stratum.
        """
        if evidence.is_dead:
            return self._dead(evidence)
        windows = self._choose(evidence)
        if not windows:
            return self._too_few(evidence)
        llm = llms.of(self.endpoint, self.kind)
        silent = self._silent(evidence)
        fired = self._block(evidence, windows)
        quiet = quote_windows(silent, evidence.store.pieces, context_tokens=self.context_tokens)
        prompt = load_prompt("contrastive")
        request = prompt.request({"windows": fired.block, "silent": quiet.block}, **self._parameters(llm))
        rules = LabelRules(self._texts(evidence, [*windows, *silent]), (fired.delimiter, quiet.delimiter))
        payload = {"silent": dict(Counter(window.stratum.value for window in silent))}
        return self._explained(
            evidence, await ask_for_label(llm, request, rules), prompt.hash, [*windows, *silent], payload
        )

    def _silent(self, evidence: LatentEvidence) -> list[ShownWindow]:
        """Silent windows of the explain side, hard ones first."""
        strata = silent_strata(evidence, Side.EXPLAIN)
        return sample_silent(strata, evidence, allocate(strata, self.silent, _SHARES), self.seed)
