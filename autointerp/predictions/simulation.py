"""A simulating judge predicts an activation for every token of the windows that it was shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from autointerp.explainers.base import Explainer
from autointerp.explanation import Explanation
from autointerp.predictions.base import PredictedWindow, Verdicts, WindowPredictor
from autointerp.scorers.base import Scorer
from autointerp.scorers.simulation import HIGHEST, KEPT_STEPS, SimulationScorer
from sae_core.errors import InputError


@dataclass(frozen=True)
class SimulatedWindows(WindowPredictor):
    """What the ``simulation`` scorer kept: the top of the judge's scale is the latent's largest activation."""

    judged: tuple[PredictedWindow, ...]

    @property
    def windows(self) -> tuple[PredictedWindow, ...]:
        """See the base class."""
        return self.judged

    @classmethod
    def may_come_of(cls, component: Explainer | Scorer) -> bool:
        """See the base class."""
        return isinstance(component, SimulationScorer)

    @classmethod
    def of(cls, explanation: Explanation, verdicts: Verdicts) -> Self | None:
        """See the base class."""
        kept = verdicts.get(SimulationScorer.model_fields["kind"].default)
        if kept is None or "expected" not in kept:
            return None
        try:
            unit = float(kept["peak"]) / (HIGHEST * KEPT_STEPS)
            rows = zip(kept["windows"], kept["fires"], kept["expected"], strict=True)
            return cls(tuple(_window(name, fires, expected, unit) for name, fires, expected in rows))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"what the simulation scorer kept of latent {explanation.latent} is damaged ({error!r}): score it again"
            ) from error


def _window(name: str, fires: Any, expected: list[int], unit: float) -> PredictedWindow:
    context, _, position = name.partition(":")
    return PredictedWindow(int(context), int(position), bool(fires), np.asarray(expected, dtype=np.float64) * unit)
