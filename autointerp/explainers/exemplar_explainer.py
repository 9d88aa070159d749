"""What explainers that show firing windows have in common: which windows, and how they are shown."""

from __future__ import annotations

from abc import ABC

from pydantic import Field

from autointerp.evidence import LatentEvidence
from autointerp.explainers.exemplar_block import exemplar_block
from autointerp.explainers.exemplar_choice import Selection, choose_exemplars, largest_activation
from autointerp.explainers.llm_explainer import LLMExplainer
from autointerp.planning.planned import MARK_TOKENS, NOTE_TOKENS, PlanSizes
from autointerp.prompting.quoting import Quoted, window_text
from autointerp.sampling.window import ShownWindow


class ExemplarExplainer(LLMExplainer, ABC):
    """An explainer that shows a language model windows in which the latent fires, of the explain side alone."""

    exemplars: int = Field(default=20, ge=1, le=500)
    """Firing windows that are shown."""
    selection: Selection = "quantiles"
    """Which ones: evenly over the activations with some strongest ones, the strongest, a uniform sample, half and half,
    evenly without the strongest, or the strongest with some in proportion to their squared activations."""
    context_tokens: int = Field(default=0, ge=0)
    """Tokens before each window that are shown too, unmarked."""
    mark_share: float = Field(default=0.3, ge=0, lt=1)
    """Tokens above this share of the latent's largest activation are marked."""
    show_activations: bool = True
    """List each window's strongest tokens with their activations from 1 to 10."""

    def _planned_windows(self, sizes: PlanSizes) -> float:
        """Prompt tokens of the block of windows."""
        each = MARK_TOKENS + (NOTE_TOKENS if self.show_activations else 0)
        return sizes.windows(self.exemplars, context_tokens=self.context_tokens, each=each)

    def _choose(self, evidence: LatentEvidence) -> list[ShownWindow]:
        """The windows, strongest first; none where none is kept."""
        return choose_exemplars(evidence, self.exemplars, self.selection)

    def _block(self, evidence: LatentEvidence, windows: list[ShownWindow]) -> Quoted:
        """The windows as they are shown."""
        return exemplar_block(
            windows,
            evidence.store.pieces,
            largest=largest_activation(evidence, windows),
            mark_share=self.mark_share,
            context_tokens=self.context_tokens,
            show_activations=self.show_activations,
        )

    def _texts(self, evidence: LatentEvidence, windows: list[ShownWindow]) -> tuple[str, ...]:
        """The windows' plain texts, which no label may copy."""
        pieces = evidence.store.pieces
        return tuple(window_text(window, pieces, context_tokens=self.context_tokens) for window in windows)
