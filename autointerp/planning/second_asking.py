"""How many windows of a label are asked again, before anything is asked: by verdicts on labels as they are supposed to be."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from autointerp.statistics.natural_rate.counts import VerdictCounts
from autointerp.statistics.natural_rate.expectation import TYPICAL, PlannedWindows, supposed_verdicts

_LABELS = 2_000
_RATE = 0.01
"""Firing rate of all of them; the numbers of yeses on silent windows hardly hang on it."""


@cache
def supposed_labels(silent: tuple[int, int, int, int], screened: int = 0, verified: int = 0) -> VerdictCounts:
    """Verdicts on typical labels of which so many silent windows of each stratum are judged, and so many bulk windows screened."""
    planned = PlannedWindows(firing=0, silent=silent, audit_latents=0, audit=0, screened=screened, verified=verified)
    return supposed_verdicts(np.full(_LABELS, _RATE), planned, TYPICAL, seed=0)


def second_asking(yes: ArrayLike, judged: ArrayLike, per_call: int) -> tuple[float, float]:
    """Calls and windows of the second asking (``judging.confirming``), in the mean over labels.

    ``yes``: doubtful windows of each label [L]; as many others stand beside them, two at least, if ``judged`` windows [L] have so many.
    """
    doubtful, whole = np.asarray(yes, dtype=np.int64), np.asarray(judged, dtype=np.int64)
    windows = doubtful + np.minimum(np.maximum(doubtful, 2), whole - doubtful)
    windows = np.where(doubtful > 0, windows, 0)
    return float(np.mean(-(-windows // per_call))), float(np.mean(windows))
