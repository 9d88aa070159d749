"""On what a latent's precision rests (METHODS 4)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from autointerp.statistics.natural_rate.audit import AuditCheck
from autointerp.statistics.natural_rate.grid import Floats
from autointerp.statistics.natural_rate.own_windows import clopper_pearson

MIN_BULK_YES = 10
"""With fewer in the run, nothing tells how low the rates of silent windows lie."""
FEW_LATENTS = 500
OWN_SHARE = 0.8
"""An interval at least so wide, in that of the latent's own windows, is its own: it would be much the same without the others."""
OWN_NARROW = 0.5
"""An interval of the latent's own windows that says something by itself, where the fit over all labels cannot be trusted."""
SHOWABLE = 0.5
"""A precision that a perfect label must be able to show."""


class PrecisionBasis(StrEnum):
    """On what a latent's precision rests."""

    COUNTED = "counted"
    """Counted over the corpus by a pattern; no judge."""
    OWN = "own"
    """The latent's own windows give about this interval."""
    BORROWED = "borrowed"
    """Narrower than its own windows allow: the 95% hold on average over latents like it."""
    JUDGE_LIMITED = "judge_limited"
    """A perfect label could not show a precision of .5 with this judge at this pi."""
    UNRESOLVED = "unresolved"
    """The run cannot tell: fewer than 10 bulk yeses, or few latents and a failed audit, and too few windows of the latent's own."""


@dataclass(frozen=True, slots=True)
class JudgeResolution:
    """The judge's confirmed yeses on windows that cannot match: null and shuffled labels."""

    judged: float
    yes: float

    @property
    def false_yes_rate(self) -> float:
        """e; 0 where no window was judged."""
        return self.yes / self.judged if self.judged else 0.0

    def bounds(self, level: float = 0.95) -> tuple[float, float]:
        """Clopper-Pearson bounds of e."""
        low, high = clopper_pearson(np.array([self.judged]), np.array([self.yes]), level)
        return float(low[0]), float(high[0])


def best_precision(pi: Floats, judge: JudgeResolution | None) -> Floats:
    """Precision [L] that a perfect label would show: pi / (pi + (1 - pi)·e)."""
    rate = 0.0 if judge is None else judge.false_yes_rate
    return np.asarray(pi / (pi + (1 - pi) * rate), dtype=np.float64)


def precision_basis(
    width: Floats, own_width: Floats, best: Floats, num_bulk_yes: float, check: AuditCheck | None
) -> NDArray[np.object_]:
    """:class:`PrecisionBasis` of each latent [L], in this order: judge_limited, own, unresolved, borrowed.

    What its own windows say stands whether or not the run's fit holds.
    """
    members = np.empty(len(PrecisionBasis), dtype=np.object_)
    place = {}
    for row, member in enumerate(PrecisionBasis):
        members[row], place[member] = member, row
    code = np.full(len(width), place[PrecisionBasis.BORROWED])
    if not fit_holds(len(width), num_bulk_yes, check):
        code[:] = np.where(own_width <= OWN_NARROW, place[PrecisionBasis.OWN], place[PrecisionBasis.UNRESOLVED])
    code[width >= OWN_SHARE * own_width] = place[PrecisionBasis.OWN]
    code[best < SHOWABLE] = place[PrecisionBasis.JUDGE_LIMITED]
    return np.asarray(members[code])


def fit_holds(num_latents: int, num_bulk_yes: float, check: AuditCheck | None) -> bool:
    """Whether anything may be borrowed from the run's other latents."""
    failed = check is not None and num_latents < FEW_LATENTS and not check.passed
    return num_bulk_yes >= MIN_BULK_YES and not failed
