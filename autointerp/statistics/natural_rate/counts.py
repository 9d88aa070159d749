"""What a run's judge said, as counts: the estimator's whole input."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autointerp.statistics.natural_rate.grid import Floats
from sae_core.errors import InputError

NUM_STRATA = 4
"""Silent windows: near by a neighbour, holding the token, near by embedding, the bulk, in this order."""
BULK = 3


MUCH = 0.01
"""Share of the bulk windows shown to a screen that it flags and the judge confirms, above which a label is broad."""


@dataclass(frozen=True, slots=True, eq=False)
class ScreenCounts:
    """A cheap screen of bulk windows by many labels a call, a second and noisier judge whose flags are verified.

    Where there is one, the bulk's judged windows (and the audit's) are windows that the screen left unflagged: they tell what it misses.
    """

    screened: Floats
    """Bulk windows shown to the screen, [L]."""
    flagged: Floats
    """Of these, the windows that it says match, [L]."""
    verified: Floats
    """Flagged windows that the judge itself was asked about, [L]."""
    confirmed: Floats
    """Of these, confirmed, [L]."""

    def found(self) -> NDArray[np.int8]:
        """How much it found, [L]: 0 where nothing was confirmed, 1 for a share of up to :data:`MUCH` of what it was shown, 2 for more."""
        shown, asked = np.maximum(self.screened, 1e-300), np.maximum(self.verified, 1e-300)
        share = self.flagged / shown * (self.confirmed / asked)
        return np.where(self.confirmed > 0, 1 + (share > MUCH), 0).astype(np.int8)


@dataclass(frozen=True, slots=True, eq=False)
class VerdictCounts:
    """A run's verdicts, one row a latent.

    A yes on a silent window counts if the judge said it again, asked about the window alone. Counts need not be whole: where windows of a document
    or a call depend on each other, both are divided by the design effect.
    """

    pi: Floats
    """Share of windows in which the latent fires, [L]."""
    firing_judged: Floats
    """[L]."""
    firing_yes: Floats
    """[L]."""
    pool: Floats
    """Silent windows of the pool in each stratum, [L, 4]; their shares are the weights."""
    judged: Floats
    """Silent windows judged, without the audit's, [L, 4]."""
    yes: Floats
    """[L, 4]."""
    audit_judged: Floats
    """Further bulk windows judged, on the audit latents alone, [L]."""
    audit_yes: Floats
    """[L]."""
    screen: ScreenCounts | None = None

    def __len__(self) -> int:
        return len(self.pi)

    @property
    def num_bulk_yes(self) -> float:
        """Confirmed yeses on bulk windows over the whole run."""
        flagged = 0.0 if self.screen is None else float(self.screen.confirmed.sum())
        return float(self.yes[:, BULK].sum() + self.audit_yes.sum()) + flagged

    def without_audit(self) -> VerdictCounts:
        """The same without the audit's windows."""
        nothing = np.zeros(len(self))
        return replace(self, audit_judged=nothing, audit_yes=nothing)

    def rates(self) -> list[tuple[Floats, Floats]]:
        """(windows, yes) of every rate that makes up the false-positive rate: strata, then flagged windows and share of flags."""
        judged, yes = self.judged.copy(), self.yes.copy()
        judged[:, BULK] += self.audit_judged
        yes[:, BULK] += self.audit_yes
        found = [(judged[:, h], yes[:, h]) for h in range(NUM_STRATA)]
        if self.screen is not None:
            found.append((self.screen.verified, self.screen.confirmed))
            found.append((self.screen.screened, self.screen.flagged))
        return found

    def groups(self) -> dict[int, NDArray[np.int8]]:
        """Of some of these rates: among which latents [L] a prior is fitted that treats latents alike.

        What a screen misses goes with what it finds. Among all labels the few broad ones would be told that a screen misses next to nothing,
        as it does of narrow ones, and would look better than they are.
        """
        return {} if self.screen is None else {BULK: self.screen.found()}


def verdict_counts(
    pi: ArrayLike,
    firing_judged: ArrayLike,
    firing_yes: ArrayLike,
    pool: ArrayLike,
    judged: ArrayLike,
    yes: ArrayLike,
    audit_judged: ArrayLike | None = None,
    audit_yes: ArrayLike | None = None,
    screen: ScreenCounts | None = None,
) -> VerdictCounts:
    """Checked :class:`VerdictCounts`. Raises :class:`InputError` for counts that cannot be."""
    rate, fired, confirmed = (np.asarray(column, dtype=np.float64) for column in (pi, firing_judged, firing_yes))
    strata = [np.asarray(column, dtype=np.float64) for column in (pool, judged, yes)]
    audited = [
        np.zeros(len(rate)) if column is None else np.asarray(column, dtype=np.float64)
        for column in (audit_judged, audit_yes)
    ]
    screened: list[Floats] = []
    if screen is not None:
        screen = ScreenCounts(
            *(
                np.asarray(column, dtype=np.float64)
                for column in (screen.screened, screen.flagged, screen.verified, screen.confirmed)
            )
        )
        screened = [screen.screened, screen.flagged, screen.verified, screen.confirmed]
    if rate.ndim != 1 or any(column.shape != rate.shape for column in (fired, confirmed, *audited, *screened)):
        raise InputError(
            "pi, firing, audit and screen counts of different lengths were given; give one of each a latent."
        )
    if not len(rate):
        raise InputError("no latent was given; there is nothing to estimate.")
    if any(column.shape != (len(rate), NUM_STRATA) for column in strata):
        raise InputError(f"counts of strata must be [latents, {NUM_STRATA}] for {len(rate)} latents.")
    if not np.all((rate > 0) & (rate < 1)):
        raise InputError(
            "a pi outside 0 to 1 was given; precision needs latents that fire in some windows and not in all."
        )
    pairs = [(fired, confirmed), (strata[1], strata[2]), (audited[0], audited[1])]
    pairs += [(screened[0], screened[1]), (screened[2], screened[3])] if screened else []
    for whole, part in pairs:
        if not (np.all(part >= 0) and np.all(part <= whole) and np.isfinite(whole).all()):
            raise InputError("more yeses than windows judged, or a negative count, was given.")
    if not (np.all(strata[0] >= 0) and np.all(strata[0].sum(axis=1) > 0)):
        raise InputError("a latent has no silent window in the pool; its strata have no weights.")
    return VerdictCounts(rate, fired, confirmed, strata[0], strata[1], strata[2], audited[0], audited[1], screen)
