"""Which of many latents have a causal effect, false discoveries held down (METHODS 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from sae_core.errors import InputError, NonFiniteError

MIN_BAND = 12
"""Control directions that a norm band needs; below it the spread of the controls is a guess."""
MAX_BANDS = 5


@dataclass(frozen=True, slots=True)
class ControlledSignificance:
    """Latents' effects measured in the spread of control directions, each [L]; NaN where the effect is not defined."""

    z: NDArray[np.float64]
    """Standard deviations of the controls of like norm, above their mean."""
    p: NDArray[np.float64]
    """Chance that one more control direction would reach so far up (one-sided)."""
    q: NDArray[np.float64]
    """Benjamini-Yekutieli adjusted p over the defined latents."""


def benjamini_yekutieli(p: ArrayLike) -> NDArray[np.float64]:
    """q-values [L] of p-values [L]; NaN stays NaN and is not counted as a test.

    Holds the false discovery rate under any dependence between the tests (Benjamini & Yekutieli 2001,
    *Ann. Statist.* 29), which latents that share a corpus, directions and neighbours need.
    Raises :class:`InputError` outside 0 to 1.
    """
    given = np.asarray(p, dtype=np.float64)
    defined = ~np.isnan(given)
    values = given[defined]
    if np.any((values < 0) | (values > 1)):
        raise InputError("a p-value outside 0 to 1 was given.")
    q = np.full(given.shape, np.nan)
    if not len(values):
        return q
    order = np.argsort(values, kind="stable")
    ranks = np.arange(1, len(values) + 1)
    raised = values[order] * len(values) / ranks * np.sum(1 / ranks)
    monotone = np.minimum(np.minimum.accumulate(raised[::-1])[::-1], 1.0)
    adjusted = np.empty_like(monotone)
    adjusted[order] = monotone
    q[defined] = adjusted
    return q


def causal_q(
    effect_L: ArrayLike, norm_L: ArrayLike, control_effect_C: ArrayLike, control_norm_C: ArrayLike
) -> ControlledSignificance:
    """Each latent's effect against the effects of random directions of like norm.

    ``effect_L`` [L] causal effects, NaN where not defined; ``norm_L`` [L] size of the push, e.g. mean |z_f|·|d_f| in
    units of the hookpoint; ``control_*`` [C] the same of random directions that went through the same scorer.
    Controls are cut into norm bands of at least :data:`MIN_BAND`; a latent is compared with its band, or with the
    nearest one if it lies outside them all. With m controls in the band, ``z / sqrt(1 + 1/m)`` follows
    Student's t with m - 1 degrees of freedom where the latent is one more such direction.
    All NaN with fewer than 3 controls, or where controls do not vary. Raises :class:`InputError` or
    :class:`NonFiniteError`.
    """
    effect, norm = (np.asarray(column, dtype=np.float64) for column in (effect_L, norm_L))
    controls, control_norm = (np.asarray(column, dtype=np.float64) for column in (control_effect_C, control_norm_C))
    if effect.ndim != 1 or effect.shape != norm.shape or controls.ndim != 1 or controls.shape != control_norm.shape:
        raise InputError(
            f"effects and norms of shapes {effect.shape}, {norm.shape}, {controls.shape} and {control_norm.shape} were "
            "given; give one norm per effect."
        )
    defined = ~np.isnan(effect)
    kept = ~np.isnan(controls)
    controls, control_norm = controls[kept], control_norm[kept]
    if not (np.isfinite(norm[defined]).all() and np.isfinite(control_norm).all() and np.isfinite(controls).all()):
        raise NonFiniteError("a norm or a control's effect is NaN or infinite; check the coder's weights.")
    z, p = np.full(len(effect), np.nan), np.full(len(effect), np.nan)
    if len(controls) >= 3:
        num_bands = int(np.clip(len(controls) // MIN_BAND, 1, MAX_BANDS))
        inner = np.quantile(control_norm, np.arange(1, num_bands) / num_bands)
        band_L, band_C = (np.searchsorted(inner, values, side="left") for values in (norm, control_norm))
        for band in range(num_bands):
            members = controls[band_C == band]
            if len(members) < 3:  # ties of the norm may leave a band empty: then all controls stand in for it
                members = controls
            spread = float(members.std(ddof=1))
            if spread <= 1e-12:
                continue
            here = defined & (band_L == band)
            z[here] = (effect[here] - members.mean()) / spread
            p[here] = stdtr(len(members) - 1, -z[here] / np.sqrt(1 + 1 / len(members)))
    return ControlledSignificance(z, p, benjamini_yekutieli(p))
