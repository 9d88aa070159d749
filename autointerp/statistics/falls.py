"""How far a score falls where labels are worse by a known error: what a scorer's self-test goes by (METHODS 6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_core.errors import InputError

LEAST_FALL = 0.05
"""Of the way from what perfect labels get to chance; a scorer that falls by less is blind to the error."""
LEAST_LATENTS = 20
"""In a decade of pi that is looked at by itself; one latent cannot show a fall."""
_ERRORS = 2.0
"""Standard errors by which a fall must differ from none: a few windows that happen to be drawn are no eyesight."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GroupFall:
    """Of the latents of one decade of pi, or of all."""

    rate_from: float
    """Least pi."""
    rate_below: float
    """Bound above."""
    num_latents: int
    perfect: float
    """Mean score of perfect labels."""
    worse: float
    """Mean score of the others."""
    fall: float | None
    """Their difference over that of ``perfect`` and chance; None where perfect labels get no more than chance."""
    error: float | None
    """Standard error of the fall; None for a single latent."""
    decides: bool
    """Whether it counts: groups with few latents are there to be looked at."""

    @property
    def sees(self) -> bool:
        """Whether the score falls."""
        if self.fall is None or self.error is None:
            return False
        return self.fall >= LEAST_FALL and self.fall > _ERRORS * self.error


@dataclass(frozen=True, slots=True)
class Falls:
    """Whether a scorer sees an error of labels."""

    sees: bool
    """The score falls in every group that decides."""
    whole: GroupFall
    """All latents together."""
    groups: tuple[GroupFall, ...]
    """The decades of pi that hold a latent, ascending."""


def label_falls(perfect: ArrayLike, worse: ArrayLike, rates: ArrayLike, chance: float) -> Falls:
    """The fall from the scores of perfect labels [L] to those of worse ones [L], by decade of pi, ``rates`` [L].

    Decades with at least ``LEAST_LATENTS`` latents decide; where there is none, all latents together do. Errors: InputError.
    """
    best, found, pi = (np.asarray(column, dtype=np.float64) for column in (perfect, worse, rates))
    if best.ndim != 1 or not len(best) or not best.shape == found.shape == pi.shape:
        raise InputError(
            f"scores of shapes {best.shape} and {found.shape} and rates of shape {pi.shape} were given; give one of each a "
            "latent, of one latent at least."
        )
    if not (np.isfinite(best).all() and np.isfinite(found).all() and ((pi > 0) & (pi < 1)).all()):
        raise InputError("a score that is not finite, or a pi outside 0 to 1, was given; leave such latents out.")
    decade = np.floor(np.log10(pi)).astype(np.int64)
    known, counts = np.unique(decade, return_counts=True)
    enough = counts >= LEAST_LATENTS
    groups = tuple(
        _group(best[decade == d], found[decade == d], chance, (10.0**d, 10.0 ** (d + 1)), bool(decides))
        for d, decides in zip(known.tolist(), enough, strict=True)
    )
    span = (groups[0].rate_from, groups[-1].rate_below)
    whole = _group(best, found, chance, span, not enough.any())
    deciding = [group for group in (*groups, whole) if group.decides]
    return Falls(all(group.sees for group in deciding), whole, groups)


def _group(best: Floats, found: Floats, chance: float, span: tuple[float, float], decides: bool) -> GroupFall:
    distance = float(best.mean()) - chance
    lost = best - found
    error = float(lost.std(ddof=1) / np.sqrt(len(lost))) if len(lost) > 1 else None
    above = distance > 0
    return GroupFall(
        rate_from=span[0],
        rate_below=span[1],
        num_latents=len(best),
        perfect=float(best.mean()),
        worse=float(found.mean()),
        fall=float(lost.mean()) / distance if above else None,
        error=error / distance if above and error is not None else None,
        decides=decides,
    )
