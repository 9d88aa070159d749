"""The windows that a run asks about for each label, in the numbers of its own configuration (docs/precision.md, "How a run does it").

A screen of uniform windows, many labels a call; detection on firing windows, near ones, a few of those that the screen was shown, and
what it flagged; an audit of 60 labels; further screens, and near windows, for labels whose interval is wide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autointerp.config.sections import PrecisionConfig
from autointerp.judging.screening import COMPANY
from autointerp.scorers.detection import DetectionScorer
from autointerp.statistics.natural_rate import (
    NaturalRates,
    ScreenCounts,
    VerdictCounts,
    estimate_natural_rates,
    verdict_counts,
)
from autointerp.statistics.natural_rate.counts import BULK

if TYPE_CHECKING:
    from precision_coverage import Population

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

DETECTION = DetectionScorer(endpoint="judge")
SETTINGS = PrecisionConfig()
POOL = 30_000
NEAR = 2
"""Windows near by embedding, a stratum that runs do not draw: theirs lie in the bulk."""


@dataclass(frozen=True)
class Screen:
    """A second, noisier judge, better at some labels than at others."""

    sees: Floats
    """Share of the windows with a yes of the judge that it flags, [L]."""
    cries: Floats
    """Share of the others that it flags, [L]."""


def noisy_screen(num: int, rng: np.random.Generator) -> Screen:
    """Sees .8 in the mean, and of every fifth label's windows .4; flags .5% of the others, and of every tenth label's 3%."""
    return Screen(rng.choice([0.4, 0.8, 0.95], num, p=[0.2, 0.3, 0.5]), rng.choice([0.005, 0.03], num, p=[0.9, 0.1]))


def without_near(of: Population) -> Population:
    """The same labels with no window near by embedding."""
    weights = of.weights.copy()
    weights[:, NEAR] = 0
    return replace(of, weights=weights / weights.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Shown:
    """Bulk windows that a screen was shown, each [L]."""

    seen: Counts
    """Flagged, and the judge would say yes."""
    cried: Counts
    """Flagged, and it would say no."""
    missed: Counts
    """Not flagged, and it would say yes."""
    rest: Counts

    @property
    def flagged(self) -> Counts:
        """All that it says match."""
        return self.seen + self.cried

    @property
    def unflagged(self) -> Counts:
        """All others."""
        return self.missed + self.rest

    def of(self, chosen: Counts) -> Shown:
        """Those of the ``chosen`` labels (1, else 0) alone."""
        return Shown(self.seen * chosen, self.cried * chosen, self.missed * chosen, self.rest * chosen)


def shown(of: Population, screen: Screen, windows: int, rng: np.random.Generator) -> Shown:
    """A screen of so many uniform windows: what of them is a label's bulk."""
    bulk = rng.binomial(windows, (1 - of.pi) * of.weights[:, BULK])
    fits = rng.binomial(bulk, of.rates[:, BULK])
    seen, cried = rng.binomial(fits, screen.sees), rng.binomial(bulk - fits, screen.cries)
    return Shown(seen, cried, fits - seen, bulk - fits - cried)


@dataclass(frozen=True)
class Verdicts:
    """What the judge said of such windows, each [L]."""

    judged: Counts
    """Without a flag."""
    yes: Counts
    verified: Counts
    """Flagged."""
    confirmed: Counts

    def of(self, chosen: Counts) -> Verdicts:
        """Those of the ``chosen`` labels (1, else 0) alone."""
        return Verdicts(self.judged * chosen, self.yes * chosen, self.verified * chosen, self.confirmed * chosen)


def judged(
    windows: Shown, unflagged: Counts, rng: np.random.Generator, most_flagged: int = SETTINGS.verified
) -> Verdicts:
    """Verdicts on so many unflagged windows and on at most so many flagged ones."""
    asked = np.minimum(windows.unflagged, unflagged)
    verified = np.minimum(windows.flagged, most_flagged)
    return Verdicts(
        asked,
        rng.hypergeometric(windows.missed, windows.rest, asked),
        verified,
        rng.hypergeometric(windows.seen, windows.cried, verified),
    )


@dataclass(frozen=True)
class Asked:
    """What a run asked about each label."""

    of: Population
    pool: Counts
    firing_yes: Counts
    near: Counts
    """Judged windows of the strata before the bulk, [L, 3]."""
    near_yes: Counts
    rounds: list[tuple[Shown, Verdicts]]
    """The first is the screen and detection."""
    audit: Verdicts
    done: Counts
    """Rounds that each label got."""

    def counts(self) -> VerdictCounts:
        """All verdicts, added up as the stage ``estimate`` does."""
        num = len(self.done)
        screened = np.sum([windows.flagged + windows.unflagged for windows, _ in self.rounds], axis=0)
        flagged = np.sum([windows.flagged for windows, _ in self.rounds], axis=0)
        bulk, yes = (np.sum([getattr(said, name) for _, said in self.rounds], axis=0) for name in ("judged", "yes"))
        verified, confirmed = (
            np.sum([getattr(said, name) for _, said in self.rounds], axis=0) for name in ("verified", "confirmed")
        )
        return verdict_counts(
            self.of.pi, np.full(num, DETECTION.firing), self.firing_yes, self.pool,
            np.column_stack([self.near, bulk]), np.column_stack([self.near_yes, yes]),
            self.audit.judged, self.audit.yes, ScreenCounts(screened, flagged, verified, confirmed),
        )  # fmt: skip

    def windows(self) -> Floats:
        """Windows that the judge was asked about for each label, the audit's among them, [L]."""
        of = self.counts()
        assert of.screen is not None, "every label is screened"
        return np.asarray(of.firing_judged + of.judged.sum(axis=1) + of.audit_judged + of.screen.verified)


def first_round(of: Population, screen: Screen, rng: np.random.Generator) -> Asked:
    """The screen, detection and the audit."""
    num = len(of.pi)
    pool = rng.multinomial(np.round(POOL * (1 - of.pi)).astype(int), of.weights)
    near = np.minimum(pool[:, :BULK], DETECTION.silent_by_stratum[:BULK])
    first = shown(of, screen, SETTINGS.screen_windows, rng)
    bulk = DETECTION.silent_by_stratum[BULK]
    # detection's bulk windows are some of those that the screen was shown, so that some of them are flagged
    verdicts = judged(first, bulk - rng.hypergeometric(first.flagged, first.unflagged, bulk), rng)
    each = DETECTION.firing + near.sum(axis=1) + verdicts.judged + verdicts.verified
    size = SETTINGS.audit_size(num, round(float(each.mean())), DETECTION.per_call)
    chosen = np.zeros(num, dtype=np.int64)
    chosen[rng.permutation(num)[: SETTINGS.audit_latents]] = 1
    windows = shown(of, screen, size, rng)
    audit = judged(windows, windows.unflagged, rng, most_flagged=0)
    return Asked(
        of,
        pool,
        rng.binomial(DETECTION.firing, of.recall),
        near,
        rng.binomial(near, of.rates[:, :BULK]),
        [(first, verdicts)],
        audit.of(chosen),
        np.ones(num, dtype=np.int64),
    )


def further_round(
    before: Asked, screen: Screen, wide: NDArray[np.bool_], unsure: NDArray[np.bool_], rng: np.random.Generator
) -> Asked:
    """Another round for the labels ``wide`` [L]; windows near the label too where ``unsure`` [L]."""
    of, got = before.of, wide.astype(np.int64)
    windows = shown(of, screen, SETTINGS.round_windows, rng)
    flagged = np.minimum(windows.flagged, SETTINGS.verified)
    room = np.where(wide & unsure, DETECTION.per_call - COMPANY - flagged, 0)
    left = before.pool[:, :BULK] - before.near
    near = np.column_stack([np.minimum((room + 1) // 2, left[:, 0]), np.minimum(room // 2, left[:, 1]), 0 * room])
    verdicts = judged(windows, np.where((flagged > 0) | (near.sum(axis=1) > 0), COMPANY, 0), rng)
    return replace(
        before,
        near=before.near + near,
        near_yes=before.near_yes + rng.binomial(near, of.rates[:, :BULK]),
        rounds=[*before.rounds, (windows.of(got), verdicts.of(got))],
        done=before.done + got,
    )


def estimated(
    of: Population, screen: Screen, rounds: int, seed: int, rng: np.random.Generator
) -> list[tuple[NaturalRates, Asked]]:
    """After each round the figures, as if it were the last one, and what they rest on."""
    asked = first_round(of, screen, rng)
    found: list[tuple[NaturalRates, Asked]] = []
    for number in range(1, rounds + 1):
        if found:
            last = found[-1][0]
            wide = (asked.done == number - 1) & (last.precision.width > SETTINGS.width)
            asked = further_round(asked, screen, wide, last.near_precision.width > SETTINGS.width, rng)
        found.append((estimate_natural_rates(asked.counts(), seed), asked))
    return found
