"""What a label predicts of its latent, as a thing that can be put in the latent's place. Torch-free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from autointerp.explanation import Explanation
from autointerp.patterns.index import PoolIndex

if TYPE_CHECKING:
    from autointerp.explainers.base import Explainer
    from autointerp.scorers.base import Scorer

Verdicts = Mapping[str, Mapping[str, Any]]
"""What scorers kept of their work on one label, by the scorer's kind (``Score.verdicts``)."""


class Predictor(ABC):
    """One label's predictions of its latent's activations, in the coder's units and with their sign.

    A module of this package with a concrete subclass of :class:`TokenPredictor` or :class:`WindowPredictor` is enough for
    its labels to be substituted.
    """

    @classmethod
    def may_come_of(cls, component: Explainer | Scorer) -> bool:
        """Whether a run with this explainer or scorer may have labels with predictions of this kind; True where that cannot be told."""
        return True

    @classmethod
    @abstractmethod
    def of(cls, explanation: Explanation, verdicts: Verdicts) -> Self | None:
        """The predictions of one explanation without a failure, None where there are none of this kind.

        Errors: InputError where they are there and damaged.
        """


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predicted activations; silence is predicted wherever nothing is named."""

    ordinal: NDArray[np.int32]
    """[M] counting positions of a pool's index, ascending, each at most once."""
    activation: NDArray[np.float64]
    """[M] never 0."""


class TokenPredictor(Predictor):
    """A label that predicts an activation for every token of any text."""

    @abstractmethod
    def predict(self, index: PoolIndex) -> Predicted:
        """Predictions on the windows of a pool, each with the tokens before it."""


@dataclass(frozen=True, slots=True, eq=False)
class PredictedWindow:
    """A window of the score side of which a judge said what it expects from the label."""

    context: int
    """Ordinal of the context."""
    position: int
    """Position of the window's first token in its context."""
    fires: bool
    """Whether the latent fires in it."""
    activation: NDArray[np.float64]
    """[T'] predicted at each token of the window, a BOS at its start left out."""


class WindowPredictor(Predictor):
    """A label whose predictions are known in some windows only: uniform samples of the firing and of the silent ones."""

    @property
    @abstractmethod
    def windows(self) -> tuple[PredictedWindow, ...]:
        """All windows that were judged."""
