"""What every explainer is: its config as fields, its behaviour as one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from autointerp.evidence import EvidenceRequest, LatentEvidence
from autointerp.explanation import Explanation
from autointerp.imports.split import Split
from autointerp.llm.asking import NO_LLMS, LLMNeed, LLMs
from autointerp.planning.planned import PlannedCalls, PlanSizes
from sae_core.records import Source


class Explainer(BaseModel, ABC):
    """Writes one candidate text about one latent from evidence of the explain and choose sides alone."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    kind: str
    """Name in the config file; a concrete class narrows it to a ``Literal``."""

    @property
    def side(self) -> Literal["input", "output"]:
        """Whether it says what makes the latent fire, or what the latent does."""
        return "input"

    @property
    def rounds_of_tests(self) -> int:
        """Rounds in which texts are tried on the subject and :meth:`revise` is asked; 0 for an explainer that is done at once."""
        return 0

    def needs(self) -> list[EvidenceRequest]:
        """Evidence that GPU stages must have written before."""
        return []

    def check_sources(self, sources: Sequence[Source], split: Split | None) -> None:
        """Look whether it can explain these sources, of a run with this split into sides, before the run begins.

        Errors: InputError's family.
        """

    def llm_needs(self) -> list[LLMNeed]:
        """Endpoints that it asks, and what these must be able to do; checked before anything is spent."""
        return []

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """Its calls for one latent, worked out from its fields; none where it asks nobody."""
        return []

    @abstractmethod
    async def explain(self, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Explanation:
        """One explanation; what goes wrong with the latent is its ``failure``, not an exception (AskFailed may pass)."""

    async def revise(self, explanation: Explanation, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Explanation:
        """The explanation corrected by ``evidence.tried``; asked as often as ``rounds_of_tests`` says.

        ``explanation.payload["tests"]``, a list of ``{"text": ...}``, is what the next round tries.
        """
        raise NotImplementedError(f"{self.kind} has no rounds")
