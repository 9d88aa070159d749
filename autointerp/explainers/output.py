"""The output explainer: what the latent does to the subject's next token, from its direction and from steering; no text is read."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from autointerp.evidence import EvidenceRequest, LatentEvidence, LensRequest, TokenChangeRequest
from autointerp.explainers.label_rules import LabelRules
from autointerp.explainers.llm_explainer import LLMExplainer, ask_for_label
from autointerp.explanation import Explanation
from autointerp.failure import FailureKind
from autointerp.llm.asking import NO_LLMS, LLMs
from autointerp.planning.planned import BLOCK_TOKENS, PlannedCalls, PlanSizes
from autointerp.prompting.prompt import load_prompt
from autointerp.prompting.quoting import quote_lists

_TOKENS_OF_A_TOKEN = 3
"""Prompt tokens of one token of a list with its quotation marks and comma, about."""


class OutputExplainer(LLMExplainer):
    """One call: tokens that the latent makes likelier and less likely, answered with one line about what it does."""

    kind: Literal["output"] = "output"
    """Name in the config file."""
    tokens: int = Field(default=10, ge=1, le=100)
    """Tokens of each list."""
    prompts: int = Field(default=32, ge=0)
    """Random prompts on which the latent is steered; 0 for the direction alone."""

    @property
    def side(self) -> Literal["input", "output"]:
        """What the latent does."""
        return "output"

    def needs(self) -> list[EvidenceRequest]:
        """The direction through the unembedding, and the effect of steering."""
        needs: list[EvidenceRequest] = [LensRequest(tokens=self.tokens)]
        if self.prompts:
            needs.append(TokenChangeRequest(prompts=self.prompts, tokens=self.tokens))
        return needs

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """One call with two lists of tokens, or four."""
        lists = 4 if self.prompts else 2
        return self._planned("output", sizes, BLOCK_TOKENS + lists * (4 + self.tokens * _TOKENS_OF_A_TOKEN))

    async def explain(self, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Explanation:
        """A label of what it does; ``dead``, ``no_evidence``, ``bad_label`` and those of the call are its failures."""
        if evidence.is_dead:
            return self._dead(evidence)
        lists = self._lists(evidence)
        if not any(lists.values()):
            message = "neither its direction nor its effect on the next token was measured"
            return self._unexplained(evidence, FailureKind.NO_EVIDENCE, message)
        llm = llms.of(self.endpoint, self.kind)
        block = quote_lists(lists)
        prompt = load_prompt("output")
        request = prompt.request({"lists": block.block}, **self._parameters(llm))
        rules = LabelRules(delimiters=(block.delimiter,))
        return self._explained(
            evidence, await ask_for_label(llm, request, rules), prompt.hash, payload={"lists": lists}
        )

    def _lists(self, evidence: LatentEvidence) -> dict[str, list[str]]:
        """Texts of the tokens by what was measured; what was not measured is left out."""
        lens, change = evidence.lens, evidence.token_change
        found: dict[str, NDArray[np.int32]] = {}
        if change is not None and self.prompts:
            rows = np.flatnonzero(change.latents == evidence.latent)
            if len(rows):
                found |= {"likelier": change.raised[rows[0]], "less likely": change.lowered[rows[0]]}
        if lens is not None:
            found |= {
                "direction up": lens.promoted[evidence.latent],
                "direction down": lens.suppressed[evidence.latent],
            }
        pieces = evidence.store.pieces
        return {name: [pieces.piece(int(i)) for i in ids[: self.tokens] if i >= 0] for name, ids in found.items()}
