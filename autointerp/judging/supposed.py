"""Labels of which nothing is known but in which windows they hold: what a scorer's self-test shows it (METHODS 6).

No language model is asked. A *perfect* label holds where the latent fires. Of a label that is *missing* firing half of these windows
are gone; one with *extra* firing holds in all of them and in about as many silent windows, spread over these as they come. Where a
label holds depends on the latent and on the window alone, never on the order in which it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autointerp.explanation import Explanation
from autointerp.judging.batching import Asked
from autointerp.judging.choices import Choice
from autointerp.judging.questions import Question
from autointerp.llm.protocol import NO_USAGE
from autointerp.sampling.window import ShownWindow
from sae_core.hashing import hash64, seed_for
from sae_core.records import WindowPool

NATURAL_RATE = "_natural_rate"
"""Ends the name under which F1 at the natural rate stands in a self-test, beside the scorer whose verdicts it is estimated from."""
NOT_ASKED: Asked[Any] = Asked((), NO_USAGE)
"""What it took: nothing."""
_KEPT = 0.5
"""Share of the firing windows in which a label that is missing firing still holds."""


class LabelError(StrEnum):
    """What is wrong with a supposed label."""

    NONE = "perfect"
    """Nothing."""
    MISSING = "missing"
    """Half of the windows are gone in which it should hold."""
    EXTRA = "extra"
    """It holds in as many silent windows as in firing ones."""


@dataclass(frozen=True)
class SupposedLabel:
    """One of them, of one latent."""

    error: LabelError
    """What is wrong with it."""
    latent: int
    """The latent that it is a label of."""
    rate: float
    """pi, the share of windows in which the latent fires, between 0 and 1."""
    seed: int
    """Seed of the run."""

    @cached_property
    def _key(self) -> int:
        return seed_for(self.seed, "supposed label", self.latent, self.error.value)

    @property
    def explanation(self) -> Explanation:
        """What stands in for its text; the explainer is named after the error."""
        return Explanation(latent=self.latent, explainer=self.error.value, text=f"a supposed label: {self.error.value}")

    def uniform(self, context: ArrayLike, position: ArrayLike) -> NDArray[np.float64]:
        """Between 0 and 1, one a window: its own number for everything that is random about it."""
        return hash64(self._key, context, position).astype(np.float64) / 2.0**64

    def holds_at(self, context: ArrayLike, position: ArrayLike, fires: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[W] whether it holds in windows at these places, in which the latent ``fires`` [W] or not."""
        if self.error is LabelError.NONE:
            return fires.copy()
        drawn = self.uniform(context, position)
        if self.error is LabelError.MISSING:
            return fires & (drawn < _KEPT)
        # as many false windows as true ones: (1 - pi) of all are silent; a latent that fires in most has no more than these
        return fires | (drawn < self.rate / (1 - self.rate))

    def holds(self, windows: Sequence[ShownWindow]) -> NDArray[np.bool_]:
        """[W] whether it holds in each of some windows, which have the latent's activations."""
        return self._holds(windows, np.array([window.fires for window in windows], dtype=np.bool_))

    def _holds(self, windows: Sequence[ShownWindow], fires: NDArray[np.bool_]) -> NDArray[np.bool_]:
        places = np.array([window.place for window in windows], dtype=np.int64).reshape(-1, 2)
        return self.holds_at(places[:, 0], places[:, 1], fires)

    def _num_holding(self, windows: Sequence[ShownWindow], fires: bool) -> int:
        return int(self._holds(windows, np.full(len(windows), fires)).sum())

    def holds_in(self, pool: WindowPool, fires: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[W] whether it holds in each window of a pool, in which the latent ``fires`` [W] or not."""
        return self.holds_at(pool.context, pool.position, fires)

    def answers(self, questions: Sequence[Question]) -> list[bool]:
        """What a reader without fault says of questions.

        Marks are right where the label holds at these very tokens: of a window in which the latent fires elsewhere they are not, and
        of a silent one in which the label holds nobody can say where, so there they are taken for right.
        """
        holds = self.holds([question.window for question in questions])
        elsewhere = [q.marks is not None and not q.truth and q.window.fires for q in questions]
        found: list[bool] = (holds & ~np.array(elsewhere, dtype=np.bool_)).tolist()
        return found

    def chosen(self, choices: Sequence[Choice]) -> list[int]:
        """What a reader without fault chooses, from 1 on: the set in most of whose windows it holds, one of these at random on ties.

        The latent fires in the windows of the right set and in no others, whatever fires there (windows of its neighbours).
        """
        found = []
        for choice in choices:
            own = [number == choice.right for number in range(1, len(choice.sets) + 1)]
            counts = np.array([self._num_holding(*pair) for pair in zip(choice.sets, own, strict=True)])
            best = np.flatnonzero(counts == counts.max())
            drawn = float(self.uniform(*choice.window.place))
            found.append(int(best[int(drawn * len(best))]) + 1)
        return found


def supposed_labels(latent: int, rate: float, seed: int) -> list[SupposedLabel]:
    """One with each error, the perfect one first."""
    return [SupposedLabel(error, latent, rate, seed) for error in LabelError]
