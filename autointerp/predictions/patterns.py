"""Patterns predict an activation for every token: the mean over the matches of the pattern that decides there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from autointerp.explainers.base import Explainer
from autointerp.explainers.pattern import PatternExplainer
from autointerp.explanation import Explanation
from autointerp.patterns.index import PoolIndex
from autointerp.patterns.trie import PatternTrie
from autointerp.predictions.base import Predicted, TokenPredictor, Verdicts
from autointerp.scorers.base import Scorer


@dataclass(frozen=True)
class PatternPredictor(TokenPredictor):
    """The predictions of a trie. Where an exception decides, the label says silence, and silence is predicted."""

    trie: PatternTrie

    @classmethod
    def may_come_of(cls, component: Explainer | Scorer) -> bool:
        """See the base class."""
        return isinstance(component, PatternExplainer)

    @classmethod
    def of(cls, explanation: Explanation, verdicts: Verdicts) -> Self | None:
        """See the base class."""
        payload = explanation.payload
        return cls(PatternTrie.from_payload(payload)) if PatternTrie.reads(payload) else None

    def predict(self, index: PoolIndex) -> Predicted:
        """See the base class."""
        found = self.trie.predict_indexed(index)
        said = found.fires & (found.activation != 0)
        return Predicted(found.ordinal[said], found.activation[said])
