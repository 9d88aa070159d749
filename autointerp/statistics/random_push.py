"""In which range the effect of one more random push falls: whether a latent does more than *a* push, not than their mean.

Letters: L latents, K kinds of control directions (isotropic and typical ones differ in the mean), R directions of a latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import polygamma, psi, stdtr, stdtrit

from sae_core.errors import InputError, NonFiniteError

Floats = NDArray[np.float64]

MIN_BAND = 100
"""Latents that a band of norms needs before it has a variance of its own."""
MAX_BANDS = 5
MIN_PRIOR = 3
"""Latents below which there is nothing to borrow."""
FAR = 0.0005
"""Upper, or lower, tail of a draw that counts as far out."""
_STEPS = 40
"""Halvings of the bracket of a quantile."""


@dataclass(frozen=True, slots=True)
class ControlDirectionMeans:
    """Each latent's control directions by kind: ln(KL + floor), averaged over the latent's windows. All [L, K]."""

    centre: Floats
    """Mean over the kind's directions, minus the mean over all of the latent's directions; NaN where there is none."""
    variance: Floats
    """Variance over the kind's directions (ddof 1); NaN where there are fewer than two."""
    count: NDArray[np.int64]
    """Directions."""

    def __post_init__(self) -> None:
        if not self.centre.shape == self.variance.shape == self.count.shape or self.centre.ndim != 2:
            raise InputError(
                f"means, variances and counts of shapes {self.centre.shape}, {self.variance.shape} and "
                f"{self.count.shape} were given; give [latents, kinds] for each."
            )
        if np.isinf(self.centre).any() or np.isinf(self.variance).any():
            raise NonFiniteError("a control's KL is infinite; check the subject's and the coder's weights.")


@dataclass(frozen=True, slots=True)
class VariancePrior:
    """What is known of one variance from the variances of others."""

    variance: float
    freedom: float
    """Degrees of freedom that the prior is worth; 0 where nothing is known."""

    def moderated(self, variance_L: Floats, freedom_L: Floats) -> tuple[Floats, Floats]:
        """Own variances drawn towards the prior, and their degrees of freedom."""
        own = np.where(freedom_L > 0, variance_L, 0.0)
        freedom = self.freedom + freedom_L
        with np.errstate(invalid="ignore", divide="ignore"):
            return (self.freedom * self.variance + freedom_L * own) / freedom, freedom


def variance_prior(variance_L: ArrayLike, freedom_L: ArrayLike, most_freedom: float) -> VariancePrior:
    """The scaled inverse chi-squared distribution that many variances come from (Smyth 2004, *Stat. Appl. Genet.* 3:3).

    ``variance_L`` [L] each with ``freedom_L`` degrees of freedom. From the mean and the spread of their logarithms: where
    these spread no more than chance makes them, all latents have one variance. ``most_freedom`` is a cap, because
    latents share a pool of directions, which are no more independent draws than the pool has members.
    """
    variance, freedom = (np.asarray(column, dtype=np.float64) for column in (variance_L, freedom_L))
    known = (freedom > 0) & np.isfinite(variance) & (variance >= 0)
    variance, freedom = variance[known], freedom[known]
    middle = float(np.median(variance)) if len(variance) else 0.0
    if len(variance) < MIN_PRIOR or middle <= 0:
        return VariancePrior(0.0, 0.0)
    logs = np.log(np.maximum(variance, 1e-5 * middle)) - psi(freedom / 2) + np.log(freedom / 2)
    excess = float(logs.var(ddof=1) - polygamma(1, freedom / 2).mean())
    worth = min(2 * _inverse_trigamma(excess), most_freedom) if excess > 0 else most_freedom
    offset = float(psi(worth / 2) - np.log(worth / 2))
    return VariancePrior(float(np.exp(logs.mean() + offset)), float(worth))


def _inverse_trigamma(value: float) -> float:
    """x > 0 with trigamma(x) = ``value`` (Newton's method as in Smyth 2004, appendix)."""
    if value > 1e7:
        return float(1 / np.sqrt(value))
    if value < 1e-6:
        return 1 / value
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-8:
            break
    return float(x)


def random_push_range(
    controls: ControlDirectionMeans, norm_L: ArrayLike, *, most_freedom: float, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Low and high [L] of the causal effect that one more random push of the latent's size would show.

    It is as likely of one kind as of another; within a kind it falls by Student's t around the mean of that kind, with the
    variance of one direction and of the latent's control mean itself (the ``1 + 1/R`` of a prediction). A latent has
    two or so of a kind, too few for a variance or an offset between kinds: both are drawn towards those of latents
    with pushes of like size (``norm_L`` [L]), as far as these agree (:func:`variance_prior`). The bounds are the
    (1 - level)/2 quantiles of the mixture of kinds.
    NaN where a kind has no direction, no variance is known or nothing varies.
    """
    norm = np.asarray(norm_L, dtype=np.float64)
    if norm.shape != controls.centre.shape[:1]:
        raise InputError(f"norms of shape {norm.shape} were given for {len(controls.centre)} latents; give one each.")
    return _mixture_range(*_predictive(controls, norm, most_freedom), level)


def random_push_chance(
    controls: ControlDirectionMeans, norm_L: ArrayLike, effect_L: ArrayLike, *, most_freedom: float
) -> Floats:
    """Chance [L] that one more random push of the latent's size shows an effect as large as ``effect_L``, or larger.

    The upper tail of the distribution whose middle is :func:`random_push_range`, NaN where that is. Beyond the reach of the
    directions that were drawn it is Student's t tail, which effects with heavier tails exceed more often (docs/causal.md).
    """
    norm, effect = np.asarray(norm_L, dtype=np.float64), np.asarray(effect_L, dtype=np.float64)
    if not norm.shape == effect.shape == controls.centre.shape[:1]:
        raise InputError(
            f"norms of shape {norm.shape} and effects of shape {effect.shape} were given for {len(controls.centre)} "
            "latents; give one of each."
        )
    return _upper_tail(*_predictive(controls, norm, most_freedom), effect)


def norm_bands(norm_L: Floats) -> list[NDArray[np.intp]]:
    """Indices of latents by bands of like norm, at least :data:`MIN_BAND` each where there are several."""
    known = np.flatnonzero(np.isfinite(norm_L))
    order = known[np.argsort(norm_L[known], kind="stable")]
    bands = int(np.clip(len(order) // MIN_BAND, 1, MAX_BANDS))
    return list(np.array_split(order, bands))


def _predictive(controls: ControlDirectionMeans, norm_L: Floats, most_freedom: float) -> tuple[Floats, Floats, Floats]:
    """Centre, scale and degrees of freedom [L, K] of one more direction of each kind, against the mean of the controls."""
    centre, scale, freedom = (np.full(controls.centre.shape, np.nan) for _ in range(3))
    for members in norm_bands(norm_L):
        count = controls.count[members].astype(np.float64)
        spread = np.empty_like(count)
        for kind in range(count.shape[1]):
            own = np.maximum(count[:, kind] - 1, 0)
            variance = controls.variance[members, kind]
            prior = variance_prior(variance, own, most_freedom)
            spread[:, kind], free = prior.moderated(variance, own)
            freedom[members, kind] = np.minimum(free, most_freedom)
        with np.errstate(invalid="ignore", divide="ignore"):
            of_mean = spread / count  # variance of a kind's mean
            weight = count / count.sum(axis=1, keepdims=True)
            of_all = (weight**2 * of_mean).sum(axis=1, keepdims=True)
            of_centre = of_all + (1 - 2 * weight) * of_mean
        centre[members], left = _shrunk(controls.centre[members], of_centre)
        scale[members] = np.sqrt(spread + of_all + left)
    return centre, scale, freedom


def _shrunk(centre_LK: Floats, variance_LK: Floats) -> tuple[Floats, Floats]:
    """Kinds' offsets drawn towards those of the other latents, as far as these agree, and the variance that is left.

    A latent's own offset of a kind rests on two directions or so; most of its scatter between latents is theirs.
    """
    shrunk, left = centre_LK.copy(), variance_LK.copy()
    for kind in range(centre_LK.shape[1]):
        centre, variance = centre_LK[:, kind], variance_LK[:, kind]
        known = np.isfinite(centre) & np.isfinite(variance)
        if known.sum() < MIN_PRIOR:
            continue
        mean = float(centre[known].mean())
        between = max(0.0, float(centre[known].var(ddof=1) - variance[known].mean()))
        with np.errstate(invalid="ignore", divide="ignore"):
            trust = np.where(variance > 0, between / (between + variance), 1.0)
        shrunk[:, kind] = mean + trust * (centre - mean)
        left[:, kind] = trust * variance
    return shrunk, left


def _mixture_range(centre_LK: Floats, scale_LK: Floats, freedom_LK: Floats, level: float) -> tuple[Floats, Floats]:
    """Quantiles of equal mixtures of t distributions, by bisection between the quantiles of the parts."""
    defined = (np.isfinite(centre_LK) & np.isfinite(scale_LK) & (scale_LK > 1e-12) & (freedom_LK > 0)).all(axis=1)
    centre, scale, freedom = centre_LK[defined], scale_LK[defined], freedom_LK[defined]
    bounds = []
    for chance in (0.5 - level / 2, 0.5 + level / 2):
        parts = centre + scale * stdtrit(freedom, chance)
        low, high = parts.min(axis=1), parts.max(axis=1)
        for _ in range(_STEPS):
            middle = (low + high) / 2
            below = stdtr(freedom, (middle[:, None] - centre) / scale).mean(axis=1) < chance
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        found = np.full(len(centre_LK), np.nan)
        found[defined] = (low + high) / 2
        bounds.append(found)
    return bounds[0], bounds[1]


def _upper_tail(centre_LK: Floats, scale_LK: Floats, freedom_LK: Floats, effect_L: Floats) -> Floats:
    """Upper tails of the same mixtures; NaN where one is not defined."""
    defined = (np.isfinite(centre_LK) & np.isfinite(scale_LK) & (scale_LK > 1e-12) & (freedom_LK > 0)).all(axis=1)
    chance = np.full(len(effect_L), np.nan)
    away = (centre_LK[defined] - effect_L[defined, None]) / scale_LK[defined]
    chance[defined] = stdtr(freedom_LK[defined], away).mean(axis=1)
    return chance


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Control directions treated as if they were latents: how often the range of a random push holds them."""

    num_draws: int
    """Pairs of a latent and a direction that was left out."""
    num_covered: int
    num_below: int
    """Draws that fall under the range, and below those over it."""
    num_above: int
    num_far: int
    """Draws with a chance below :data:`FAR` on either side: one in a thousand if tails are no heavier than Student's."""


def left_out(
    mean_LR: ArrayLike,
    kind_R: ArrayLike,
    direction_LR: ArrayLike,
    norm_L: ArrayLike,
    *,
    most_freedom: float,
    level: float = 0.95,
) -> LeftOut:
    """Leave each direction of the pool out of all controls in turn, and see whether zero differs from its effect.

    ``mean_LR`` [L, R] mean over a latent's windows of ln(KL + floor) along its controls; ``kind_R`` [R] their kinds,
    ``direction_LR`` [L, R] which members of the pool they are. A draw whose kind has no other direction left, or whose
    range is not known, does not count.
    """
    mean, direction = np.asarray(mean_LR, dtype=np.float64), np.asarray(direction_LR)
    kind, norm = np.asarray(kind_R), np.asarray(norm_L, dtype=np.float64)
    draws = below = above = far = 0
    for member in np.unique(direction):
        kept = direction != member
        rest = control_means(np.where(kept, mean, np.nan), kind)
        who, where = np.nonzero(~kept)
        centre, scale, freedom = _predictive(rest, norm, most_freedom)
        low, high = _mixture_range(centre[who], scale[who], freedom[who], level)
        effect = mean[who, where] - np.nanmean(np.where(kept, mean, np.nan)[who], axis=1)
        known = np.isfinite(low) & np.isfinite(effect)
        draws += int(known.sum())
        below += int((effect[known] < low[known]).sum())
        above += int((effect[known] > high[known]).sum())
        tail = _upper_tail(centre[who], scale[who], freedom[who], effect)[known]
        far += int(((tail < FAR) | (tail > 1 - FAR)).sum())
    return LeftOut(draws, draws - below - above, below, above, far)


def control_means(mean_LR: ArrayLike, kind_R: ArrayLike) -> ControlDirectionMeans:
    """Directions' means [L, R] (NaN: there is none) gathered by kind, the kinds ascending."""
    mean, kind = np.asarray(mean_LR, dtype=np.float64), np.asarray(kind_R)
    if mean.ndim != 2 or kind.shape != mean.shape[1:]:
        raise InputError(
            f"means of shape {mean.shape} were given with kinds of shape {kind.shape}; give one kind each."
        )
    there = ~np.isnan(mean)
    filled = np.where(there, mean, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        overall = filled.sum(axis=1) / there.sum(axis=1)
        centres, variances, counts = [], [], []
        for one in np.unique(kind):
            count = there[:, kind == one].sum(axis=1)
            centre = filled[:, kind == one].sum(axis=1) / count
            squares = np.where(there[:, kind == one], mean[:, kind == one] - centre[:, None], 0.0) ** 2
            centres.append(centre - overall)
            variances.append(np.where(count > 1, squares.sum(axis=1) / (count - 1), np.nan))
            counts.append(count)
    return ControlDirectionMeans(np.stack(centres, 1), np.stack(variances, 1), np.stack(counts, 1).astype(np.int64))
