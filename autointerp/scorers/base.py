"""What every scorer is: its config as fields, its behaviour as one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from autointerp.evidence import EvidenceRequest, LatentEvidence
from autointerp.explanation import Explanation
from autointerp.llm.asking import NO_LLMS, LLMNeed, LLMs
from autointerp.planning.planned import PlannedCalls, PlanSizes
from autointerp.score import Score


class Scorer(BaseModel, ABC):
    """Says how far an explanation, or a latent itself, can be trusted, on evidence of a side that made no label."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    CHANCE: ClassVar[float | None] = None
    """What the headline comes to where nothing of the label is used; None where that is not one number."""

    kind: str
    """Name in the config file; a concrete class narrows it to a ``Literal``."""

    @property
    def judges_explanation(self) -> bool:
        """Whether an explanation is scored; False for scores of the latent itself, which are made once a latent."""
        return True

    @property
    def headline(self) -> str:
        """Name of the value by which explanations are compared, more is better."""
        return f"{self.kind}_score"

    def can_judge(self, explanation: Explanation) -> bool:
        """Whether it has something to say of this explanation, its failure included (a pattern scorer counts patterns only)."""
        return explanation.side == "input"

    def needs(self) -> list[EvidenceRequest]:
        """Evidence that GPU stages must have written before."""
        return []

    def check(self) -> None:
        """Look whether what it needs of this machine is there, before a run begins. Errors: InputError's family."""

    def llm_needs(self) -> list[LLMNeed]:
        """Endpoints that it asks, and what these must be able to do; checked before anything is spent."""
        return []

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """Its calls for one label, or one latent, worked out from its fields; none where it asks nobody."""
        return []

    @abstractmethod
    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        """One score on ``evidence.scored_side``; what goes wrong with the latent is its ``failure``, not an exception."""
