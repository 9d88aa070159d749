"""Stored verdicts as counts by stratum: all that the estimator of precision and recall reads of them (METHODS 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autointerp.sampling.silent import SILENT_STRATA
from autointerp.sampling.window import Stratum
from autointerp.statistics.natural_rate.counts import ScreenCounts, VerdictCounts, verdict_counts

NO_STRATA = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Tally:
    """Verdicts on one label, counted. A window without an answer is in none of it."""

    firing_judged: int = 0
    """Firing windows with an answer."""
    firing_yes: int = 0
    """Of these, yes."""
    judged: tuple[int, int, int, int] = NO_STRATA
    """Silent windows by stratum (``SILENT_STRATA``); of the bulk those that no screen has flagged."""
    yes: tuple[int, int, int, int] = NO_STRATA
    """Of these, yes, and yes again."""
    verified: int = 0
    """Bulk windows that a screen had flagged."""
    confirmed: int = 0
    """Of these, yes, and yes again."""
    undecided: tuple[int, ...] = (0, 0, 0, 0, 0)
    """Silent windows with a yes that got no second answer, by stratum, and flagged ones: in none of the others."""
    taken_back: int = 0
    """Silent windows with a yes that was not said again."""

    @classmethod
    def of(cls, items: Mapping[str, Any]) -> Tally:
        """Counts of what ``Verdicts.to_json`` wrote; a million labels are read, so no verdict is built."""
        strata, answers = items["strata"], items["answers"]
        again = items.get("again", "-" * len(strata))
        count = Counter(zip(strata, items["truths"], answers, again, strict=True))

        def number(letters: str, signs: Sequence[tuple[str, str, str]]) -> int:
            return sum(count[letter, *sign] for letter in letters for sign in signs)

        no = [("0", "0", other) for other in "01-"]
        unsure, twice, taken_back = ("0", "1", "-"), ("0", "1", "1"), ("0", "1", "0")
        yes = tuple(number(letter, [twice]) for letter in "nteb")
        silent = tuple(number(letter, [*no, taken_back, twice]) for letter in "nteb")
        return cls(
            firing_judged=number("f", [("1", answer, other) for answer in "01" for other in "01-"]),
            firing_yes=number("f", [("1", "1", other) for other in "01-"]),
            judged=(silent[0], silent[1], silent[2], silent[3]),
            yes=(yes[0], yes[1], yes[2], yes[3]),
            verified=number("Bs", [*no, taken_back, twice]),
            confirmed=number("Bs", [twice]),
            undecided=(*(number(letter, [unsure]) for letter in "nteb"), number("Bs", [unsure])),
            taken_back=number("ntebBs", [taken_back]),
        )

    @property
    def said_again(self) -> tuple[int, int]:
        """Yeses on silent windows that were said twice, and those of them that got a second answer at all."""
        twice = sum(self.yes) + self.confirmed
        return twice, twice + self.taken_back

    @property
    def num_undecided(self) -> int:
        """Silent windows with a yes that got no second answer."""
        return sum(self.undecided)

    def as_screened(self) -> Tally:
        """Bulk windows that no screen had seen, as if one that agrees with the judge had: its yeses verified, the others unflagged."""
        *near, bulk, yes = (*self.judged, self.yes[3])
        return replace(
            self,
            judged=(near[0], near[1], near[2], bulk - yes),
            yes=(*self.yes[:3], 0),
            verified=self.verified + yes,
            confirmed=self.confirmed + yes,
        )


NO_VERDICTS = Tally()


@dataclass(frozen=True, slots=True)
class LabelTally:
    """All that was judged of one label."""

    rate: float
    """pi, the share of windows in which the latent fires, between 0 and 1."""
    pool: tuple[int, int, int, int]
    """Silent windows of the pool by stratum."""
    tallies: tuple[Tally, ...]
    """Of the scorer and of further rounds."""
    audit: Tally = NO_VERDICTS
    """Of the audit."""
    screened: int = 0
    """Bulk windows that a screen was shown with the label."""
    flagged: int = 0
    """Of these, those that it says the label fits."""
    plain: bool = False
    """Whether the scorer's bulk windows, those of the first of ``tallies``, come from no screen: there was none, or it failed."""

    def as_screened(self) -> LabelTally:
        """The same with a plain sample of the bulk parted by the judge itself, as a screen parts others' (``VerdictCounts``)."""
        if not self.plain:
            return self
        first = self.tallies[0]
        return replace(
            self,
            tallies=(first.as_screened(), *self.tallies[1:]),
            screened=self.screened + first.judged[3],
            flagged=self.flagged + first.yes[3],
        )


def unscreened(items: Mapping[str, Any]) -> dict[str, Any]:
    """Verdicts as they would be without a screen: flagged windows of the uniform sample are like others, picked ones are left out."""
    kept = [row for row, letter in enumerate(items["strata"]) if letter != "s"]
    strata = items["strata"].replace("B", "b")
    signs = {name: items[name] for name in ("truths", "answers", "again") if name in items}
    return {
        "strata": "".join(strata[row] for row in kept),
        **{name: "".join(value[row] for row in kept) for name, value in signs.items()},
    }


def pool_counts(items: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Silent windows of the pool by stratum, of what ``Verdicts.to_json`` wrote."""
    given = {Stratum(name): int(count) for name, count in items.get("pool", {}).items()}
    counts = [given.get(stratum, 0) for stratum in SILENT_STRATA]
    return counts[0], counts[1], counts[2], counts[3]


def counts_of(labels: Sequence[LabelTally]) -> VerdictCounts:
    """The estimator's input, one row a label. Errors: InputError for counts that cannot be."""

    def column(values: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.asarray(values, dtype=np.float64)

    def total(name: str) -> list[Any]:
        return [np.sum([getattr(tally, name) for tally in label.tallies], axis=0) for label in labels]

    # Only a yes can lose its second answer, so leaving such windows out would lower the rates: they count by the share of yeses that
    # are said again.
    again = np.sum([tally.said_again for label in labels for tally in (*label.tallies, label.audit)], axis=0)
    share = (again[0] + 0.5) / (again[1] + 1)

    screen = None
    if any(label.screened for label in labels):
        labels = [label.as_screened() for label in labels]
        screen = ScreenCounts(
            screened=column([label.screened for label in labels]),
            flagged=column([label.flagged for label in labels]),
            verified=column(total("verified")) + column(total("undecided"))[:, 4],
            confirmed=column(total("confirmed")) + share * column(total("undecided"))[:, 4],
        )
    return verdict_counts(
        pi=column([label.rate for label in labels]),
        firing_judged=column(total("firing_judged")),
        firing_yes=column(total("firing_yes")),
        pool=column([label.pool for label in labels]),
        judged=column(total("judged")) + column(total("undecided"))[:, :4],
        yes=column(total("yes")) + share * column(total("undecided"))[:, :4],
        audit_judged=column([label.audit.judged[3] + label.audit.undecided[3] for label in labels]),
        audit_yes=column([label.audit.yes[3] + share * label.audit.undecided[3] for label in labels]),
        screen=screen,
    )
