"""What every explainer is: its config as fields, its behaviour as one method."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pydantic import BaseModel, ConfigDict

from autointerp.evidence import EvidenceRequest, LatentEvidence
from autointerp.explanation import Explanation
from autointerp.llm.protocol import Capability, LLMClient


class Explainer(BaseModel, ABC):
    """Writes one candidate text about one latent from evidence of the explain and choose sides alone."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    kind: str
    """Name in the config file; a concrete class narrows it to a ``Literal``."""

    def needs(self) -> list[EvidenceRequest]:
        """Evidence that GPU stages must have written before."""
        return []

    def capabilities(self) -> frozenset[Capability] | None:
        """Capabilities that the LLM must have; None where no LLM is used at all."""
        return None

    @abstractmethod
    def explain(self, evidence: LatentEvidence, llm: LLMClient | None = None) -> Explanation:
        """One explanation; what goes wrong with the latent is its ``failure``, not an exception."""
