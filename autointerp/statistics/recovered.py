"""How much of what ablation takes away a substitute keeps, with an interval that heavy tails do not break.

Letters: n firing windows, m silent ones in which something is predicted (one a document as far as there are so many).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from sae_core.errors import InputError, NonFiniteError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recovered:
    """Share of the ablation's effect that a substitute keeps: 1 = nothing is lost, 0 = as bad as ablation, below 0 = worse."""

    value: float | None
    """None without firing windows, or where ablation does nothing."""
    low: float | None
    """None where the interval has no lower end: the ablated windows differ too much to say how large their mean is."""
    high: float | None
    """None below 2 firing windows."""


def recovered_share(
    kl_n: ArrayLike,
    ablated_n: ArrayLike,
    silent_m: ArrayLike = (),
    odds: float = 0.0,
    odds_spread: float = 0.0,
    *,
    odds_of_one: float = 0.0,
    unseen: bool = True,
    level: float = 0.95,
) -> Recovered:
    """``1 - rho`` with ``rho = (mean kl + odds * mean silent) / mean ablated``, and Fieller's interval.

    ``kl_n`` and ``ablated_n`` [n] are KLs of the same firing windows, substituted and ablated; ``silent_m`` [m] those of silent
    windows in which something is predicted, of which there are ``odds`` for one firing window, known to a relative
    variance of ``odds_spread``. With ``U = mean kl + odds * mean silent - rho * mean ablated`` the interval holds every
    rho at which U is no further from 0 than t standard errors (t at the smaller sample's degrees of freedom). KLs have
    tails; dividing by a mean that is not known makes U's interval unbounded, which is then said (``low`` is None), not hidden.

    A label that misses one window in thirty is perfect in most samples of sixteen, and no interval from such a sample
    alone can know of it. With ``unseen`` the interval therefore also covers the sample with one more firing window of mean
    size in which everything is missed, so that n perfect windows show no more than about ``1 - t / n``.

    ``odds_of_one`` is what one window adds to ``odds`` where silent windows are counted or judged in a sample of the text, 0 where
    all were counted. A rare latent's label may be wrong three times as often as it is right, and no such window be among
    30,000: with ``unseen`` the second sample therefore has one more silent window, too, of the ablated ones' mean size (of
    the other silent ones' where that is larger), and the spread that a count of one has. What was not seen can only speak
    against the substitute: ``high`` is the sample's own.

    Simulated coverage of the 95% interval (benchmarks/substitution_coverage.py; n = m = 8 to 64, log-normal KLs of
    sigma 1 to 2 and exponentiated t3, rho from .04 to 10; silent windows counted wholly or in a sample that holds 1 to 10
    firing ones): .94 to 1.00. It errs on the wide side. A log-ratio t, percentile or BCa bootstrap
    covers .45 to .95 of the same draws where silent windows are counted wholly.

    Raises :class:`NonFiniteError` for NaN or infinite values, :class:`InputError` for arrays that do not fit.
    """
    kl, ablated, silent = (np.asarray(given, dtype=np.float64) for given in (kl_n, ablated_n, silent_m))
    if kl.ndim != 1 or kl.shape != ablated.shape or silent.ndim != 1:
        raise InputError(
            f"KLs of shapes {kl.shape}, {ablated.shape} and {silent.shape} were given; give one substituted and one "
            "ablated for each firing window, and one for each silent window."
        )
    if not all(np.isfinite(given).all() for given in (kl, ablated, silent, np.array([odds, odds_spread, odds_of_one]))):
        raise NonFiniteError("a KL of a substitution is NaN or infinite; check the subject's and the coder's weights.")
    if odds > 0 and not len(silent):
        raise InputError(f"{odds:g} silent windows for each firing one were given, and no KL in any of them.")
    if not len(kl) or ablated.mean() <= 0:
        return Recovered(None, None, None)
    silent_mean = odds * float(silent.mean()) if odds > 0 else 0.0
    value = 1 - (float(kl.mean()) + silent_mean) / float(ablated.mean())
    if len(kl) < 2:
        return Recovered(value, None, None)
    silent_variance = _silent_variance(silent, odds, odds_spread)
    freedom = min(len(kl) - 1, max(len(silent) - 1, 1)) if odds > 0 else len(kl) - 1
    least, largest = _fieller(kl, ablated, silent_mean, silent_variance, freedom, level)
    if unseen:
        size = float(ablated.mean())
        one = odds_of_one * max(size, float(silent.mean()) if odds > 0 else 0.0)
        # the square twice: a window's size is as uncertain as it is large, and so is a count of one
        more = silent_mean + one, silent_variance + 2 * one**2
        _, with_more = _fieller(np.append(kl, size), np.append(ablated, size), *more, freedom, level)
        largest = max(largest, with_more)
    return Recovered(value, 1 - float(largest) if np.isfinite(largest) else None, 1 - float(least))


def _silent_variance(silent: Floats, odds: float, odds_spread: float) -> float:
    """Variance of ``odds * mean silent``; of one window the spread is not known and taken to be its size."""
    if odds <= 0:
        return 0.0
    mean = float(silent.mean())
    spread = float(silent.var(ddof=1)) if len(silent) > 1 else mean**2
    return odds**2 * (spread / len(silent) + odds_spread * mean**2)


def _fieller(
    kl: Floats, ablated: Floats, silent_mean: float, silent_variance: float, freedom: int, level: float
) -> tuple[float, float]:
    """``(low, high)`` of rho: from 0, since no KL is below it, and to infinity where the mean below it may be 0."""
    count = len(kl)
    below, above = float(ablated.mean()), float(kl.mean()) + silent_mean
    covariance = np.cov(ablated, kl) / count
    t2 = float(stdtrit(freedom, 0.5 + level / 2)) ** 2
    a = below**2 - t2 * covariance[0, 0]
    b = above * below - t2 * covariance[0, 1]
    c = above**2 - t2 * (covariance[1, 1] + silent_variance)
    if a <= 0:
        return 0.0, np.inf
    root = float(np.sqrt(max(b * b - a * c, 0.0)))
    return max(0.0, float(b - root) / a), max(0.0, float(b + root) / a)
