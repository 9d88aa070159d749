"""When a latent has been judged enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_core.errors import InputError


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """Rounds of windows until the interval of precision is narrow or the windows are spent.

    How wide an interval is depends on the value that it holds, so that the rule picks among latents. A posterior that knew its prior would not mind; one
    whose prior was fitted once, and plugged in, is led astray. So every round fits anew, with the verdicts of all latents, the stopped ones
    among them (:func:`estimate_natural_rates` with ``audit=False``), and only the last one's figures are published.
    """

    width: float = 0.2
    """Of the 95% interval of precision, at or below which a latent stops."""
    min_rounds: int = 2
    """No latent stops before."""
    max_windows: int = 200
    """Windows of a latent, firing and silent, that are not exceeded; the audit's do not count."""

    def __post_init__(self) -> None:
        if not 0 < self.width <= 1 or self.min_rounds < 2:
            raise InputError(
                f"a stopping width of {self.width} after at least {self.min_rounds} rounds was given; "
                "give a width above 0 and at most 1, and at least 2 rounds."
            )

    def goes_on(
        self, width: ArrayLike, rounds: ArrayLike, windows: ArrayLike, next_windows: ArrayLike
    ) -> NDArray[np.bool_]:
        """Which latents [L] get another round of ``next_windows``, after ``rounds`` of ``windows`` in all.

        A latent that stopped once does not begin again, though its interval may widen when others bring news: the caller asks only about
        latents that got the last round.
        """
        early = np.asarray(rounds) < self.min_rounds
        affordable = np.asarray(windows) + np.asarray(next_windows) <= self.max_windows
        return np.asarray(affordable & (early | (np.asarray(width) > self.width)), dtype=np.bool_)
