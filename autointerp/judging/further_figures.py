"""What the same verdicts say beyond precision and recall, for nothing: by strength, by place, by probability (METHODS 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.score import ScoreValue
from autointerp.statistics.natural_rate import (
    NaturalRates,
    VerdictCounts,
    above_threshold,
    average_precision,
    fit_rates,
    pooled_probabilities,
    precision_above,
    proportion,
    stratum_draws,
    weighted_recall,
)
from autointerp.statistics.natural_rate.grid import Floats
from sae_core.hashing import seed_for

_THRESHOLDS = {"tenth": 0.1, "half": 0.5}
"""Shares of a latent's largest activation above which it counts as firing, by the ending of their figures' names."""
_SILENT = "nteb"
_POOLED = 20
"""Probabilities of either kind that stand for the run's, evenly over their order: what a label costs grows with them."""
_EVERY = 3
"""Of the posterior's draws every third one serves: 200 give an interval, and each costs as much as the windows have values."""
_AT_ONCE = 4096
"""Labels whose draws are held at once."""


@dataclass(slots=True)
class JudgedWindows:
    """Windows of many labels with what was said of each, collected label after label."""

    label: list[NDArray[np.int64]] = field(default_factory=list)
    yes: list[NDArray[np.bool_]] = field(default_factory=list)
    peak: list[NDArray[np.float64]] = field(default_factory=list)
    late: list[NDArray[np.bool_]] = field(default_factory=list)
    probabilities: list[tuple[NDArray[np.float64], NDArray[np.int64]] | None] = field(default_factory=list)
    """Of each label, of a confirmed yes, and the stratum (-1 firing, else as ``SILENT_STRATA``); None where the judge gave none."""

    def add(self, items: Mapping[str, Any], half: float) -> None:
        """What ``Verdicts.to_json`` wrote of the next label; a first firing token from position ``half`` on is late."""
        number = len(self.probabilities)
        answers = np.array(list(items["answers"]))
        firing = (np.array(list(items["strata"])) == "f") & (answers != "-")
        peaks = items.get("peaks", [None] * len(answers))
        rows = [row for row in np.flatnonzero(firing).tolist() if peaks[row] is not None]
        self.label.append(np.full(len(rows), number))
        self.yes.append(answers[rows] == "1")
        self.peak.append(np.array([peaks[row] for row in rows], dtype=np.float64))
        self.late.append(np.array([items["firsts"][row] >= half for row in rows], dtype=np.bool_))
        self.probabilities.append(_probabilities(items))


def _probabilities(items: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    given = items.get("probabilities")
    if given is None:
        return None
    again = items.get("again", "-" * len(given))
    values, strata = [], []
    for probability, letter, second in zip(given, items["strata"], again, strict=True):
        if probability is None or letter == "s":  # picked by a screen, so no sample of the bulk's
            continue
        # a yes that was taken back ranks among the noes, as far down as it had stood up
        values.append(1 - probability if second == "0" and probability >= 0.5 else probability)
        strata.append(-1 if letter == "f" else _SILENT.find(letter.lower()))
    return np.asarray(values, dtype=np.float64), np.asarray(strata, dtype=np.int64)


def further_figures(
    windows: JudgedWindows,
    counts: VerdictCounts,
    rates: NaturalRates,
    largest: NDArray[np.float64],
    names: Sequence[object],
    seed: int,
) -> list[dict[str, ScoreValue]]:
    """Of each label [L], by name, with ``_low`` and ``_high``:

    ``recall_weighted`` (by activation), ``precision_above_tenth``, ``recall_above_tenth`` and ``.._half`` (firing only above that share of
    ``largest`` [L], the latent's largest activation), ``recall_early`` and ``recall_late`` (by the place of the first firing token in
    the window) and, where the judge gives probabilities, ``auprc``. A figure without a window is left out. ``names`` [L] seed what is
    drawn for a label, wherever it stands.
    """
    num = len(counts)
    label = np.concatenate(windows.label) if num else np.empty(0, dtype=np.int64)
    yes, late, strength = (
        np.concatenate(windows.yes),
        np.concatenate(windows.late),
        np.abs(np.concatenate(windows.peak)),
    )
    found = {"recall_weighted": (weighted_recall(label, yes, strength, num), np.bincount(label, minlength=num) > 0)}
    all_yes = _sums(label, yes, num)
    for name, share in _THRESHOLDS.items():
        above, above_yes = above_threshold(label, yes, strength, share * np.abs(largest))
        found[f"recall_above_{name}"] = proportion(above_yes, above), above > 0
        found[f"precision_above_{name}"] = precision_above(rates.precision, all_yes, above_yes), all_yes > 0
    for name, chosen in (("early", np.logical_not(late)), ("late", late)):
        judged, said = _sums(label, chosen, num), _sums(label, chosen & yes, num)
        found[f"recall_{name}"] = proportion(said, judged), judged > 0
    figures: list[dict[str, ScoreValue]] = [
        {
            key: float(value[row])
            for name, (estimate, judged) in found.items()
            if judged[row]  # of no window nothing is said
            for key, value in ((name, estimate.median), (f"{name}_low", estimate.low), (f"{name}_high", estimate.high))
        }
        for row in range(num)
    ]
    if rates.borrows:  # of the bulk's probabilities a label has too few of its own
        for row, own in _average_precisions(windows.probabilities, counts, names, seed).items():
            figures[row] |= own
    return figures


def _sums(label: NDArray[np.int64], chosen: NDArray[np.bool_], num: int) -> Floats:
    return np.asarray(np.bincount(label, chosen.astype(np.float64), num), dtype=np.float64)


def _average_precisions(
    probabilities: Sequence[tuple[NDArray[np.float64], NDArray[np.int64]] | None],
    counts: VerdictCounts,
    names: Sequence[object],
    seed: int,
) -> dict[int, dict[str, ScoreValue]]:
    rows = [row for row, own in enumerate(probabilities) if own is not None and len(own[0])]
    if not rows:
        return {}
    silent = [own[0][own[1] >= 0] for own in probabilities if own is not None]
    pooled = pooled_probabilities(np.concatenate(silent), most=_POOLED)
    posterior = fit_rates(counts, seed)
    found: dict[int, dict[str, ScoreValue]] = {}
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        draws = stratum_draws(counts, posterior, np.asarray(part, dtype=np.intp))[:, ::_EVERY]
        for place, row in enumerate(part):
            own = probabilities[row]
            assert own is not None
            rng = np.random.default_rng(seed_for(seed, "auprc", names[row]))
            area = average_precision(*own, float(counts.pi[row]), counts.pool[row], draws[place], pooled, rng)
            found[row] = {"auprc": area.median, "auprc_low": area.low, "auprc_high": area.high}
    return found
