"""Tells a judge that drifts from noise, by labels that are scored every night on the same windows.

A score's change is the mean over the anchors of tonight's value less that of the night before. Under no drift the two nights of an
anchor could be exchanged, so that its difference is as likely with the other sign: that gives a p-value which needs no assumption but
that anchors err independently (Fisher's randomisation test). Nights in which all anchors move a little together, which a server's
other batches or kernels can bring, break that; how much such nights vary is seen in the history, so the larger of two standard
errors counts: that of tonight's differences, and one by the median size of the changes of earlier nights. While the
history is short the scores' binomial errors stand for it, which is more than a judge varies on windows that stay the same. The
larger of the two p-values counts; over all scores and controls they are corrected by Holm (1979), intervals by Bonferroni.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.nightly.schedule import NoiseConfig
from sae_core.hashing import seed_for

LEAST_PAIRS = 5
"""Anchors, or latents of a control, below which nothing is tested."""
_MEDIAN_OF_NORMAL = 0.6745
"""Median size of a standard normal variable."""
_FLIPS = 4_095
_ALL_FLIPS = 12
"""Differences that are not 0 up to which every choice of signs is looked at."""
TESTED = ("score", "tpr", "fpr")
"""Values of a scorer that are tested, where it has them."""


class Counted(NamedTuple):
    """One value of one latent's score."""

    value: float
    variance: float | None
    """Its binomial sampling variance, None where it is no rate of counted windows."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one score since the night before."""

    key: str
    """Scorer and value, ``detection.score``; of a control its kind before them, ``shuffled detection.score``."""
    before: float
    """Mean of the night before, over the anchors that both nights have."""
    now: float
    difference: float
    low: float
    """Lower bound of its interval, which holds for all keys together."""
    high: float
    num: int
    """Anchors, or latents of the control tonight."""
    moved: int
    """Anchors whose value is another one tonight; of a control 0."""
    noise: float
    """Standard error that it is held against."""
    noise_from: str
    """``anchors``: of tonight's differences; ``history``: of earlier nights; ``binomial``: of the scores' windows."""
    p: float
    """Corrected over all keys of the night."""
    drifted: bool


@dataclass(frozen=True, slots=True)
class _Tested:
    key: str
    before: float
    now: float
    num: int
    moved: int
    noise: float
    noise_from: str
    freedom: float
    p: float


def variance_of(values: Mapping[str, Any], name: str) -> float | None:
    """Binomial variance of a rate by the windows that it was counted on, drawn towards 1/2 so that none is 0; None for no rate."""

    def of(rate: Any, windows: Any) -> float | None:
        if not isinstance(rate, int | float) or not isinstance(windows, int) or windows < 1:
            return None
        share = (rate * windows + 1) / (windows + 2)
        return share * (1 - share) / windows

    firing, silent = of(values.get("tpr"), values.get("firing")), of(values.get("fpr"), values.get("silent"))
    if firing is None or silent is None:  # a scorer that does not say how many of its windows are of which side
        half = values.get("judged")
        half = half // 2 if isinstance(half, int) else None
        firing, silent = of(values.get("tpr"), half), of(values.get("fpr"), half)
    if name == "tpr":
        return firing
    if name == "fpr":
        return silent
    if name != "score":
        return None
    if firing is not None and silent is not None:
        return (firing + silent) / 4
    return None if "tpr" in values else of(values.get("score"), values.get("judged"))


def changes(
    before: Mapping[str, Mapping[str, Counted]],
    now: Mapping[str, Mapping[str, Counted]],
    history: Mapping[str, Sequence[float]],
    controls: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    noise: NoiseConfig,
) -> list[Change]:
    """The changes of all scores, tested together.

    ``before``, ``now``: by key the anchors' values, by anchor. ``history``: by key the changes of earlier nights in which nothing
    was changed on purpose, oldest first. ``controls``: by key the values of the night before and of tonight.
    """
    tested = [
        _anchored(key, before[key], now[key], history.get(key, ()), noise) for key in sorted(before.keys() & now.keys())
    ]
    tested += [_control(key, *values) for key, values in sorted(controls.items())]
    known = [one for one in tested if one is not None]
    adjusted = holm([one.p for one in known])
    return [_interval(one, p, len(known), noise.level) for one, p in zip(known, adjusted, strict=True)]


def _anchored(
    key: str, before: Mapping[str, Counted], now: Mapping[str, Counted], history: Sequence[float], noise: NoiseConfig
) -> _Tested | None:
    both = sorted(before.keys() & now.keys())
    if len(both) < LEAST_PAIRS:
        return None
    difference_A = np.array([now[anchor].value - before[anchor].value for anchor in both])
    count = len(both)
    noises = [("anchors", float(difference_A.std(ddof=1)) / math.sqrt(count), float(count - 1))]
    if len(history) >= noise.nights:
        past = np.abs(np.asarray(history[-noise.history :], dtype=np.float64))
        # a median, because a night that drifted is in the history too: without those that were reported it would hold calm nights alone
        noises.append(("history", float(np.median(past)) / _MEDIAN_OF_NORMAL, len(past) / 2))
    else:
        variances = [(before[anchor].variance, now[anchor].variance) for anchor in both]
        if all(one is not None and other is not None for one, other in variances):
            total = sum((one or 0.0) + (other or 0.0) for one, other in variances)
            noises.append(("binomial", math.sqrt(total) / count, float(count - 1)))
    mean = float(difference_A.mean())
    p, source, error, freedom = max(
        (_two_sided(mean, error, freedom), source, error, freedom) for source, error, freedom in noises
    )
    p = max(p, flipped_signs(difference_A))
    means = [float(np.mean([side[anchor].value for anchor in both])) for side in (before, now)]
    moved = int(np.sum(np.abs(difference_A) > 1e-12))
    return _Tested(key, means[0], means[1], count, moved, error, source, freedom, p)


def _control(key: str, before: Sequence[float], now: Sequence[float]) -> _Tested | None:
    """Welch's test: a control's latents are others every night."""
    if min(len(before), len(now)) < LEAST_PAIRS:
        return None
    one, other = (np.asarray(values, dtype=np.float64) for values in (before, now))
    parts = [float(values.var(ddof=1)) / len(values) for values in (one, other)]
    squared = sum(parts)
    freedom = float(len(one) + len(other) - 2)
    if squared > 0:
        freedom = squared**2 / (parts[0] ** 2 / (len(one) - 1) + parts[1] ** 2 / (len(other) - 1))
    error = math.sqrt(squared)
    before_mean, now_mean = float(one.mean()), float(other.mean())
    p = _two_sided(now_mean - before_mean, error, freedom)
    return _Tested(key, before_mean, now_mean, len(other), 0, error, "anchors", freedom, p)


def _two_sided(difference: float, error: float, freedom: float) -> float:
    from scipy.special import stdtr

    if abs(difference) < 1e-12:
        return 1.0
    return 0.0 if error <= 1e-12 else float(2 * stdtr(freedom, -abs(difference) / error))


def _interval(one: _Tested, p: float, keys: int, level: float) -> Change:
    from scipy.special import stdtrit

    half = float(stdtrit(one.freedom, 1 - level / keys / 2)) * one.noise
    difference = one.now - one.before
    return Change(
        key=one.key,
        before=one.before,
        now=one.now,
        difference=difference,
        low=difference - half,
        high=difference + half,
        num=one.num,
        moved=one.moved,
        noise=one.noise,
        noise_from=one.noise_from,
        p=p,
        drifted=p < level,
    )


def flipped_signs(difference_A: NDArray[np.float64]) -> float:
    """p-value of a mean difference [A] against every choice of signs, or many random ones where there are too many."""
    moved = difference_A[np.abs(difference_A) > 1e-12]
    if not len(moved):
        return 1.0
    if len(moved) <= _ALL_FLIPS:
        bits = np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1
        sums = np.abs((1 - 2 * bits) @ moved)
        return float(np.mean(sums >= abs(moved.sum()) - 1e-9))
    rng = np.random.default_rng(seed_for(0, "flipped signs", len(moved)))
    sums = np.abs(rng.choice((-1.0, 1.0), size=(_FLIPS, len(moved))) @ moved)
    return float((1 + np.sum(sums >= abs(moved.sum()) - 1e-9)) / (1 + _FLIPS))


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected so that the chance of any false alarm is held (Holm 1979, *Scand. J. Statist.* 6)."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    worst = 0.0
    for rank, place in enumerate(order):
        worst = max(worst, min(1.0, p[place] * (len(p) - rank)))
        adjusted[place] = worst
    return [float(value) for value in adjusted]


class Moved(NamedTuple):
    """A label whose score changed by more than its own windows explain."""

    source: str
    latent: int
    key: str
    before: float
    now: float
    q: float


class Rescored:
    """Labels that have been scored again, one after the other in columns: 44 bytes each, since they may be millions.

    Only those whose values are rates of counted windows are kept: of others it is not known what their windows explain.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], int] = {}
        """Number of each source and key."""
        self._place, self._latent = array("i"), array("q")
        self._figures = tuple(array("d") for _ in range(4))

    def __len__(self) -> int:
        return len(self._latent)

    def add(self, source: str, latent: int, key: str, before: Counted, now: Counted) -> None:
        """One label, of which ``before`` and ``now`` are the same value of the same scorer."""
        if before.variance is None or now.variance is None:
            return
        self._place.append(self._places.setdefault((source, key), len(self._places)))
        self._latent.append(latent)
        figures = (before.value, before.variance, now.value, now.variance)
        for column, figure in zip(self._figures, figures, strict=True):
            column.append(figure)

    def moved(self, level: float = 0.05, most: int | None = None) -> tuple[list[Moved], int]:
        """Labels that changed, the surest (and at most ``most``) first, false discoveries held down over all; and how many changed.

        Windows count as drawn anew each time, which is cautious where they stay the same.
        """
        from scipy.special import ndtr

        from autointerp.statistics.multiplicity import benjamini_yekutieli

        if not len(self):
            return [], 0
        before_N, old_variance_N, now_N, variance_N = (np.frombuffer(column) for column in self._figures)
        q_N = benjamini_yekutieli(2 * ndtr(-np.abs(now_N - before_N) / np.sqrt(old_variance_N + variance_N)))
        found = np.flatnonzero(q_N < level)
        names = list(self._places)
        rank = np.unique([source for source, _ in names], return_inverse=True)[1]  # of each place its source's
        place_N, latent_N = np.frombuffer(self._place, np.int32), np.frombuffer(self._latent, np.int64)
        order = found[np.lexsort((latent_N[found], rank[place_N[found]], q_N[found]))][:most]
        shown = [
            Moved(
                names[place_N[n]][0],
                int(latent_N[n]),
                names[place_N[n]][1],
                float(before_N[n]),
                float(now_N[n]),
                float(q_N[n]),
            )
            for n in order
        ]
        return shown, len(found)


def change_json(change: Change) -> dict[str, Any]:
    """A change as a report keeps it."""
    return asdict(change)
