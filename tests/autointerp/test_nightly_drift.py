"""How often an undrifted night is reported, and whether drifts of known size are: judges simulated window by window."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from autointerp.nightly.drift import Counted, Rescored, changes, flipped_signs, holm, variance_of
from autointerp.nightly.schedule import NoiseConfig

ANCHORS, WINDOWS = 100, 20
NOISE = NoiseConfig()


def night(
    rng: np.random.Generator, yes_AW: np.ndarray, silent_AW: np.ndarray, flip: float, shift: float = 0.0
) -> dict[str, dict[str, Counted]]:
    """Detection's values of the anchors by a judge that says yes to each window by its own chance.

    ``flip``: share of answers that are drawn anew in the night (a judge at temperature 0 has few). ``shift``: how much likelier a wrong
    answer is in it.
    """
    found: dict[str, dict[str, Counted]] = {"detection.score": {}, "detection.tpr": {}, "detection.fpr": {}}
    fixed = np.random.default_rng(7)  # what it says where it is not drawn anew
    rates = []
    for chance, wrong in ((yes_AW, False), (silent_AW, True)):
        p = np.clip(chance + (shift if wrong else -shift), 0, 1)
        usual = fixed.random(p.shape)
        own = np.where(rng.random(p.shape) < flip, rng.random(p.shape), usual)
        rates.append((own < p).mean(axis=1))
    for anchor, (tpr, fpr) in enumerate(zip(*rates, strict=True)):
        values = {"tpr": tpr, "fpr": fpr, "score": (tpr + 1 - fpr) / 2, "firing": WINDOWS, "silent": WINDOWS}
        for name in ("score", "tpr", "fpr"):
            found[f"detection.{name}"][str(anchor)] = Counted(float(values[name]), variance_of(values, name))
    return found


def weeks(flip: float, common: float, nights: int, repeats: int, drift: float = 0.0) -> Iterator[list[bool]]:
    """Whether each night of a simulated history was reported; the drift sets in on the last one."""
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        yes = rng.beta(6, 1.5, (ANCHORS, WINDOWS))
        silent = rng.beta(1, 9, (ANCHORS, WINDOWS))
        history: dict[str, list[float]] = {}
        before, reported = None, []
        for number in range(nights):
            last = number == nights - 1
            shift = rng.normal(0, common) + (drift if last else 0.0)
            now = night(rng, yes, silent, flip, shift)
            controls = {
                "shuffled detection.score": (rng.normal(0.5, 0.08, 50).tolist(), rng.normal(0.5, 0.08, 50).tolist())
            }
            if before is not None:
                found = changes(before, now, history, controls, NOISE)
                reported.append(any(change.drifted for change in found))
                for change in found:
                    history.setdefault(change.key, []).append(change.difference)
            before = now
        yield reported


@pytest.mark.parametrize(
    "flip", [pytest.param(0.02, marks=pytest.mark.long), 0.2, pytest.param(1.0, marks=pytest.mark.long)]
)
def test_at_most_one_in_twenty_undrifted_nights_is_reported(flip: float) -> None:
    reported = [one for week in weeks(flip, 0.0, 8, 60) for one in week]
    assert len(reported) == 420
    # 21 are allowed; of a rate of .05 more than 31 come once in a hundred times
    assert sum(reported) <= 31, sum(reported) / len(reported)


@pytest.mark.long
def test_nights_that_move_together_are_noise_once_they_have_been_seen() -> None:
    """All anchors move a little every night: the anchors of one night cannot tell that from drift, the history can."""
    late = [one for week in weeks(0.2, 0.02, 26, 16) for one in week[15:]]
    assert len(late) == 160
    assert sum(late) / len(late) <= 0.1
    drifted = [week[-1] for week in weeks(0.2, 0.02, 16, 12, drift=0.2)]
    assert sum(drifted) >= 11


@pytest.mark.parametrize(("drift", "least"), [(0.05, 0.9), (0.1, 1.0)])
def test_a_judge_that_errs_more_is_reported(drift: float, least: float) -> None:
    for nights in (3, 14):  # by the scores' own errors, and by the history
        found = [week[-1] for week in weeks(0.1, 0.0, nights, 20, drift=drift)]
        assert sum(found) / len(found) >= least, nights


def test_the_interval_holds_the_true_change() -> None:
    """Of the mean of a score: 95% of nights for all keys together."""
    held = 0
    for repeat in range(200):
        rng = np.random.default_rng(repeat)
        value_A = rng.random(ANCHORS)
        one, other = (
            {
                "x.score": {
                    str(n): Counted(float(v), None) for n, v in enumerate(value_A + shift + rng.normal(0, 0.1, ANCHORS))
                }
            }
            for shift in (0.0, 0.03)
        )
        (change,) = changes(one, other, {}, {}, NOISE)
        held += change.low <= 0.03 <= change.high
    assert 180 <= held <= 199


def test_signs_are_counted_exactly() -> None:
    assert flipped_signs(np.array([0.0, 0.0])) == 1.0
    assert flipped_signs(np.array([0.1, 0.1, 0.1, 0.0])) == 2 / 8  # +++ and ---
    assert flipped_signs(np.array([0.1, -0.1])) == 1.0
    assert flipped_signs(np.full(50, 0.1)) < 0.001


def test_holm_of_a_published_example() -> None:
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") in R
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_label_is_named_where_its_windows_cannot_explain_the_change() -> None:
    rng = np.random.default_rng(1)

    def rate(p: float) -> Counted:
        values = {"tpr": rng.binomial(20, p) / 20, "fpr": rng.binomial(20, 0.1) / 20, "firing": 20, "silent": 20}
        return Counted((values["tpr"] + 1 - values["fpr"]) / 2, variance_of({**values, "score": 0.5}, "score"))

    rescored = Rescored()
    for latent in range(500):
        rescored.add("a", latent, "detection.score", rate(0.8), rate(0.8))
    rescored.add("a", 500, "rating.score", Counted(0.0, None), Counted(1.0, None))  # no rate of windows: not tested
    assert len(rescored) == 500
    assert rescored.moved() == ([], 0)
    for latent in (1004, 1000, 1003, 1001, 1002):
        rescored.add("b", latent, "detection.score", rate(0.95), rate(0.05))
    found, num_moved = rescored.moved()
    assert num_moved == 5
    assert {(one.source, one.latent) for one in found} == {("b", 1000 + n) for n in range(5)}
    assert all(one.before > 0.8 > 0.6 > one.now for one in found)
    assert [one.q for one in found] == sorted(one.q for one in found)
    assert rescored.moved(most=2) == (found[:2], 5)
