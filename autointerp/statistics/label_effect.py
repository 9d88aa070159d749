"""How far a label says what steering with its latent does to text (METHODS 5, "label against effect").

Letters: n texts, m labels of other latents, K strengths, I instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from sae_core.errors import InputError

HIGHEST_RATING = 2
"""Of a rating that begins at 0."""


@dataclass(frozen=True, slots=True)
class LabelEffect:
    """What a label gains by steering, beside what other labels gain on the same texts."""

    score: float
    """S(z): mean over texts of what a token of the label gains, nats."""
    adjusted: float
    """S_adj: S(z) less the mean of the others' S(z')."""
    low: float | None
    """Lower bound of the interval of S_adj; None where nothing varied."""
    high: float | None
    standard_error: float
    z: float | None
    """S_adj in standard deviations of the others' S(z'); None where these do not vary."""
    above: float
    """Share of the others that S(z) lies above, ties counted half: uniform where the label is any other one."""
    num_texts: int
    num_labels: int


def label_effect(own_n: ArrayLike, others_mn: ArrayLike, level: float = 0.95) -> LabelEffect:
    """S_adj of a label with a t interval that counts both texts and labels.

    ``own_n`` [n] what a token of the label gains on each text, steered against clean, nats; ``others_mn`` [m, n] the same of other
    latents' labels, NaN where it is not known::

        S_adj = mean_i ( g_i(z) - mean_z' g_i(z') )        se^2 = s_texts^2/n + s_z'^2/m

    with ``s_texts`` over the texts' differences, ``s_z'`` over the others' S(z'), and Satterthwaite's degrees of freedom. The texts
    alone would not do: all of them share the same few other labels.

    Raises:
        InputError: fewer than two texts or labels, shapes that do not fit, or a text or a label of which nothing is known.
    """
    own, others = np.asarray(own_n, dtype=np.float64), np.asarray(others_mn, dtype=np.float64)
    if own.ndim != 1 or others.ndim != 2 or others.shape[1] != len(own) or min(others.shape) < 2:
        raise InputError(
            f"gains of shapes {own.shape} and {others.shape} were given; give [texts] and [labels, texts], two of each at least."
        )
    known = np.isfinite(others)
    if not (np.isfinite(own).all() and known.any(axis=0).all() and known.any(axis=1).all()):
        raise InputError("the gain of a text or of a label is not known at all; leave it out.")
    difference = own - np.nanmean(others, axis=0)
    of_labels = np.nanmean(others, axis=1)
    score = float(own.mean())
    num_labels, num_texts = others.shape
    texts_part = float(difference.var(ddof=1)) / num_texts
    labels_part = float(of_labels.var(ddof=1)) / num_labels
    error = float(np.sqrt(texts_part + labels_part))
    adjusted = float(difference.mean())
    low = high = None
    if error > 1e-12:
        freedom = error**4 / (texts_part**2 / (num_texts - 1) + labels_part**2 / (num_labels - 1))
        half = float(stdtrit(freedom, 0.5 + level / 2)) * error
        low, high = adjusted - half, adjusted + half
    spread = float(of_labels.std(ddof=1))
    tied = np.abs(of_labels - score) <= 1e-12  # sums in another order
    above = float(np.mean((of_labels < score) & ~tied) + 0.5 * np.mean(tied))
    z = adjusted / spread if spread > 1e-12 else None
    return LabelEffect(score, adjusted, low, high, error, z, above, num_texts, num_labels)


def harmonic_mean(ratings: Sequence[float]) -> float:
    """The harmonic mean of ratings from 0 on, 0 where one of them is 0."""
    return 0.0 if min(ratings) == 0 else len(ratings) / sum(1 / rating for rating in ratings)


class ChosenStrength(NamedTuple):
    """The strength that does best on one half of the instructions, and how it does on the other."""

    strength: int
    """Index of it; of equals the weakest."""
    value: float
    """Mean over the instructions of the other half that have an answer there."""
    low: float | None
    """Lower bound of its 95% interval (t, within the scale); None with fewer than two instructions, or where nothing varied."""
    high: float | None
    num_instructions: int
    """Of the other half, with an answer."""


def chosen_strength(ratings_KI: ArrayLike, chooses_I: ArrayLike) -> ChosenStrength | None:
    """Choose among strengths (weakest first) where ``chooses_I`` holds, report where it does not.

    ``ratings_KI`` [K, I], NaN where there is none. None where a half has no rating at a strength that comes into question.
    """
    ratings, chooses = np.asarray(ratings_KI, dtype=np.float64), np.asarray(chooses_I, dtype=np.bool_)
    able = [k for k, row in enumerate(ratings) if np.isfinite(row[chooses]).any() and np.isfinite(row[~chooses]).any()]
    if not able:
        return None
    best = max(able, key=lambda k: (float(np.nanmean(ratings[k][chooses])), -k))
    reported: NDArray[np.float64] = ratings[best][~chooses]
    reported = reported[np.isfinite(reported)]
    value, count = float(reported.mean()), len(reported)
    low = high = None
    if count > 1 and (error := float(reported.std(ddof=1)) / count**0.5) > 0:
        half = float(stdtrit(count - 1, 0.975)) * error
        low, high = max(value - half, 0.0), min(value + half, float(HIGHEST_RATING))
    return ChosenStrength(best, value, low, high, count)
