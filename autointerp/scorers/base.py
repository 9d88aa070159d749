"""What every scorer is: its config as fields, its behaviour as one method."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pydantic import BaseModel, ConfigDict

from autointerp.evidence import EvidenceRequest, LatentEvidence
from autointerp.explanation import Explanation
from autointerp.llm.protocol import Capability, LLMClient
from autointerp.score import Score


class Scorer(BaseModel, ABC):
    """Says how far an explanation, or a latent itself, can be trusted, on evidence of the score side."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    kind: str
    """Name in the config file; a concrete class narrows it to a ``Literal``."""

    @property
    def judges_explanation(self) -> bool:
        """Whether an explanation is scored; False for scores of the latent itself, which are made once a latent."""
        return True

    def needs(self) -> list[EvidenceRequest]:
        """Evidence that GPU stages must have written before."""
        return []

    def capabilities(self) -> frozenset[Capability] | None:
        """Capabilities that the LLM must have; None where no LLM is used at all."""
        return None

    @abstractmethod
    def score(self, explanation: Explanation | None, evidence: LatentEvidence, llm: LLMClient | None = None) -> Score:
        """One score; what goes wrong with the latent is its ``failure``, not an exception."""
