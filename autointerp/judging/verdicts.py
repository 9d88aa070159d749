"""What a judge said of each window, beside what is true, and the rates that follow; kept as compact JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from autointerp.failure import FailureKind
from autointerp.sampling.window import Stratum

_LETTER: dict[Stratum, str] = {
    Stratum.FIRING: "f",
    Stratum.NEIGHBOUR: "n",
    Stratum.TOKEN: "t",
    Stratum.NEAR: "e",
    Stratum.BULK: "b",
    Stratum.FLAGGED: "s",
}
_STRATUM = {letter: stratum for stratum, letter in _LETTER.items()}
_FLAGGED = "B"
"""A bulk window that a screen flagged."""
_ANSWER: dict[bool | None, str] = {True: "1", False: "0", None: "-"}
_SAID = {sign: answer for answer, sign in _ANSWER.items()}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One question to a judge: an answer, or a typed failure."""

    window: str
    """The window that was judged, as ``context:position``."""
    stratum: Stratum
    """What the window was drawn from."""
    truth: bool
    """The right answer; for a choice among several always True."""
    answer: bool | None
    """What the judge said, for a choice among several whether it chose right; None where there is no valid answer."""
    probability: float | None = None
    """Probability of a yes by the answer's log-probabilities, where the server gives them."""
    failure: FailureKind | None = None
    """Why there is no answer."""
    company: tuple[str, ...] = ()
    """Other windows that were shown with it as one question."""
    again: bool | None = None
    """What the judge said when it was asked once more, in other company; None where it was not, or gave no answer."""
    flagged: bool = False
    """Whether the screen had flagged the window for this label."""
    peak: float | None = None
    """Largest activation in the window, by magnitude; None where the latent is silent, and for a choice among several."""
    first: int | None = None
    """Position in the window of the first token on which the latent fires; None as before."""

    def __post_init__(self) -> None:
        assert (self.answer is None) == (self.failure is not None), "a verdict has either an answer or a failure"
        assert self.again is None or self.answer is not None, "only what was answered is asked again"

    @property
    def confirmed(self) -> bool | None:
        """The answer that counts at the natural rate: a yes on a silent window only if it was said twice (METHODS 4).

        None where there is no answer, or such a yes got no second answer: it then counts neither way.
        """
        return self.again if self.answer and not self.truth else self.answer


@dataclass(frozen=True, slots=True)
class Verdicts:
    """All verdicts of one score. A rate without a judged window is None, never 0."""

    items: tuple[Verdict, ...]
    """In the order in which the windows were drawn."""
    pool: Mapping[Stratum, int] = field(default_factory=dict)
    """Silent windows of each stratum in the side's pool; empty where strata play no part."""
    rate: float | None = None
    """pi, the share of the side's windows in which the latent fires, of those that may be judged; None as before."""

    @property
    def weights(self) -> dict[Stratum, float]:
        """Share of each silent stratum among the side's silent windows; empty where strata play no part."""
        whole = sum(self.pool.values())
        return {stratum: count / whole for stratum, count in self.pool.items()} if whole else {}

    @property
    def judged(self) -> tuple[Verdict, ...]:
        """Those with an answer."""
        return tuple(item for item in self.items if item.answer is not None)

    @property
    def num_judged(self) -> int:
        """Questions with an answer."""
        return len(self.judged)

    @property
    def num_failed(self) -> int:
        """Questions without one."""
        return len(self.items) - self.num_judged

    @property
    def windows(self) -> frozenset[str]:
        """All windows that were shown to the judge, as ``context:position``."""
        return frozenset(name for item in self.items for name in (item.window, *item.company))

    def num_judged_of(self, *, truth: bool, stratum: Stratum | None = None) -> int:
        """Answered questions of one side, of one stratum where it is given, else of all but the flagged windows."""
        return len(self._answers(truth, stratum))

    def _answers(self, truth: bool, stratum: Stratum | None = None) -> list[bool]:
        return [
            item.answer
            for item in self.items
            if item.answer is not None
            and item.truth is truth
            and (item.stratum is not Stratum.FLAGGED if stratum is None else item.stratum is stratum)
        ]

    @property
    def tpr(self) -> float | None:
        """Share of yes where yes is right."""
        return _share(self._answers(True))

    @property
    def fpr(self) -> float | None:
        """Share of yes where no is right, each window counting the same but the flagged ones, which no sample has drawn."""
        return _share(self._answers(False))

    def fpr_of(self, stratum: Stratum) -> float | None:
        """Share of yes where no is right, in one stratum."""
        return _share(self._answers(False, stratum))

    @property
    def weighted_fpr(self) -> float | None:
        """The strata's rates in proportion to their weights (METHODS 4); None where a stratum with weight was not judged."""
        total = 0.0
        for stratum, weight in self.weights.items():
            if weight:
                rate = self.fpr_of(stratum)
                if rate is None:
                    return None
                total += weight * rate
        return total if any(self.weights.values()) else None

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the rates of right answers on the two sides; None where a side has no judged window."""
        tpr, fpr = self.tpr, self.fpr
        return None if tpr is None or fpr is None else (tpr + 1 - fpr) / 2

    @property
    def accuracy(self) -> float | None:
        """Share of right answers."""
        return _share([item.answer is item.truth for item in self.judged])

    @property
    def auroc(self) -> float | None:
        """Area under the curve of the probabilities, over the answers that have one."""
        known = [
            (item.probability, item.truth)
            for item in self.judged
            if item.probability is not None and item.stratum is not Stratum.FLAGGED
        ]
        return auroc([p for p, _ in known], [truth for _, truth in known])

    @property
    def num_probabilities(self) -> int:
        """Answers with a probability."""
        return sum(item.probability is not None for item in self.judged)

    @property
    def common_failure(self) -> FailureKind | None:
        """The most common kind of failure (the first one, on ties); None where there is none."""
        kinds = Counter(item.failure for item in self.items if item.failure is not None)
        return kinds.most_common(1)[0][0] if kinds else None

    def to_json(self) -> dict[str, Any]:
        """A compact JSON object for a table row: one sign a verdict where that suffices, probabilities with 4 decimals."""
        out: dict[str, Any] = {
            "windows": [item.window for item in self.items],
            "strata": "".join(_stratum_letter(item) for item in self.items),
            "truths": "".join(_ANSWER[item.truth] for item in self.items),
            "answers": "".join(_ANSWER[item.answer] for item in self.items),
        }
        if any(item.probability is not None for item in self.items):
            out["probabilities"] = [
                None if item.probability is None else round(item.probability, 4) for item in self.items
            ]
        if any(item.failure is not None for item in self.items):
            out["failures"] = [None if item.failure is None else item.failure.value for item in self.items]
        if any(item.company for item in self.items):
            out["company"] = [list(item.company) for item in self.items]
        if any(item.again is not None for item in self.items):
            out["again"] = "".join(_ANSWER[item.again] for item in self.items)
        if any(item.peak is not None for item in self.items):
            out["peaks"] = [None if item.peak is None else float(f"{item.peak:.5g}") for item in self.items]
            out["firsts"] = [item.first for item in self.items]
        if self.pool:
            out["pool"] = {stratum.value: count for stratum, count in self.pool.items()}
        if self.rate is not None:
            out["rate"] = self.rate
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdicts:
        """The inverse of ``to_json``. Errors: ValueError or KeyError for what it did not write."""
        windows: Sequence[str] = data["windows"]
        nothing: list[None] = [None] * len(windows)
        rows = zip(
            windows,
            (Stratum.BULK if letter == _FLAGGED else _STRATUM[letter] for letter in data["strata"]),
            (_SAID[sign] is True for sign in data["truths"]),
            (_SAID[sign] for sign in data["answers"]),
            data.get("probabilities", nothing),
            (None if kind is None else FailureKind(kind) for kind in data.get("failures", nothing)),
            (tuple(others) for others in data.get("company", [()] * len(windows))),
            (_SAID[sign] for sign in data.get("again", "-" * len(windows))),
            (letter in (_FLAGGED, _LETTER[Stratum.FLAGGED]) for letter in data["strata"]),
            data.get("peaks", nothing),
            data.get("firsts", nothing),
            strict=True,
        )
        pool = {Stratum(name): int(count) for name, count in data.get("pool", {}).items()}
        return cls(tuple(Verdict(*row) for row in rows), pool, data.get("rate"))


def stratum_names() -> dict[str, tuple[str, bool]]:
    """By the sign that ``to_json`` writes for it: a stratum's name, and whether a screen had flagged the window."""
    flagged = (_FLAGGED, _LETTER[Stratum.FLAGGED])
    return {
        letter: (stratum.value, letter in flagged) for letter, stratum in (*_STRATUM.items(), (_FLAGGED, Stratum.BULK))
    }


def _stratum_letter(item: Verdict) -> str:
    return _FLAGGED if item.flagged and item.stratum is Stratum.BULK else _LETTER[item.stratum]


def _share(answers: Iterable[bool]) -> float | None:
    listed = list(answers)
    return sum(listed) / len(listed) if listed else None


def auroc(values: ArrayLike, truth: ArrayLike) -> float | None:
    """Chance that a true one of two has the larger value, ties counting half; None where there is no pair."""
    scores, true = np.asarray(values, dtype=np.float64), np.asarray(truth, dtype=np.bool_)
    positive, negative = np.sort(scores[true]), np.sort(scores[~true])
    if not len(positive) or not len(negative):
        return None
    below = np.searchsorted(negative, positive, side="left").sum()
    upto = np.searchsorted(negative, positive, side="right").sum()
    return float(below + upto) / (2 * len(positive) * len(negative))
