"""What else the verdicts say: by strength, by place, by probability, against counts by hand and a brute-force AUPRC."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from autointerp.judging.further_figures import JudgedWindows, further_figures
from autointerp.judging.tally import LabelTally, Tally, counts_of
from autointerp.judging.verdicts import Verdict, Verdicts
from autointerp.sampling.window import Stratum
from autointerp.score import ScoreValue
from autointerp.statistics.natural_rate import estimate_natural_rates


def firing(number: int, yes: bool, peak: float, first: int, p: float | None = None) -> Verdict:
    return Verdict(f"{number}:0", Stratum.FIRING, True, yes, p, peak=peak, first=first)


def silent(number: int, stratum: Stratum, yes: bool, again: bool | None, p: float | None = None) -> Verdict:
    return Verdict(f"{number}:16", stratum, False, yes, p, again=again)


def figures(verdicts: list[list[Verdict]], rate: float = 0.1, largest: float = 10.0) -> list[dict[str, ScoreValue]]:
    windows, tallies = JudgedWindows(), []
    for own in verdicts:
        items = Verdicts(tuple(own)).to_json()
        windows.add(items, 8)
        tallies.append(LabelTally(rate, (0, 0, 0, 9_000), (Tally.of(items),)))
    counts = counts_of(tallies)
    rates = estimate_natural_rates(counts, 0, audit=False)
    names = list(range(len(verdicts)))
    return further_figures(windows, counts, rates, np.full(len(verdicts), largest), names, 0)


HAND = [
    # peak above half of 10: yes, yes, no; above a tenth: also two yeses and a no; below: one no
    firing(0, True, 9.0, 0),
    firing(1, True, -8.0, 15),
    firing(2, False, 6.0, 8),
    firing(3, True, 2.0, 7),
    firing(4, True, 1.5, 3),
    firing(5, False, 1.2, 9),
    firing(6, False, 0.5, 2),
    *(silent(n, Stratum.BULK, False, None) for n in range(7, 27)),
]


def median(yes: float, judged: float) -> float:
    return float(beta(yes + 0.5, judged - yes + 0.5).median())


def test_thresholds_and_places_equal_counts_by_hand() -> None:
    found = figures([HAND])[0]
    assert found["recall_above_half"] == pytest.approx(median(2, 3))
    assert found["recall_above_tenth"] == pytest.approx(median(4, 6))
    assert found["recall_early"] == pytest.approx(median(3, 4))  # first firing token at 0, 7, 3 (yes) and 2 (no)
    assert found["recall_late"] == pytest.approx(median(1, 3))
    # weighted by activation: (9 + 8 + 2 + 1.5) of 28.2, worth (sum w)^2 / sum w^2 windows
    weights = np.array([9, 8, 6, 2, 1.5, 1.2, 0.5])
    worth = weights.sum() ** 2 / (weights**2).sum()
    assert found["recall_weighted"] == pytest.approx(median(worth * 20.5 / weights.sum(), worth))
    # above half two of the four windows with a yes count as firing
    precision = estimate_natural_rates(
        counts_of([LabelTally(0.1, (0, 0, 0, 9_000), (Tally.of(Verdicts(tuple(HAND)).to_json()),))]), 0, audit=False
    ).precision
    assert found["precision_above_half"] == pytest.approx(precision.median[0] * median(2, 4), rel=1e-6)
    assert "auprc" not in found


def test_a_figure_without_a_window_is_left_out() -> None:
    found = figures([[firing(0, True, 3.0, 1), *(silent(n, Stratum.BULK, False, None) for n in range(1, 9))]])[0]
    assert "recall_above_half" not in found
    assert "recall_late" not in found
    assert "recall_above_tenth" in found


def test_the_order_of_labels_changes_no_label() -> None:
    other = [*HAND[2:], silent(90, Stratum.BULK, True, True)]
    first, second = figures([HAND, other]), figures([other, HAND])
    for name in ("recall_above_half", "recall_early", "recall_weighted"):
        assert first[0][name] == second[1][name]
        assert first[1][name] == second[0][name]


def test_auprc_of_many_windows_is_that_of_the_population() -> None:
    """Labels whose judge gives noisy probabilities: with hundreds of windows each, the interval holds the brute-force area over
    a population of 200,000 windows at the natural rate, and is narrow."""
    rng, rate, labels = np.random.default_rng(5), 0.1, 40

    def probability(fires: np.ndarray) -> np.ndarray:
        # a seventh of the silent windows looks like a match
        looks = fires | (rng.random(len(fires)) < 1 / 7)
        return np.clip(np.where(looks, rng.beta(8, 2, len(fires)), rng.beta(1, 12, len(fires))), 0.001, 0.999)

    fires = rng.random(200_000) < rate
    everywhere = probability(fires)
    order = np.argsort(-everywhere)
    hits = np.cumsum(fires[order])
    truth = float((hits / np.arange(1, len(order) + 1))[fires[order]].mean())

    verdicts = []
    for _ in range(labels):
        kind = np.arange(400) < 200
        p = probability(kind)
        verdicts.append(
            [
                firing(n, bool(p[n] >= 0.5), 5.0, 0, float(p[n]))
                if kind[n]
                else silent(n, Stratum.BULK, bool(p[n] >= 0.5), True if p[n] >= 0.5 else None, float(p[n]))
                for n in range(400)
            ]
        )
    found = figures(verdicts, rate)
    low, middle, high = (np.array([own[f"auprc{end}"] for own in found], dtype=float) for end in ("_low", "", "_high"))
    assert ((low <= truth) & (truth <= high)).mean() >= 0.85
    assert abs(np.median(middle) - truth) < 0.03
    assert np.median(high - low) < 0.25


def test_a_yes_that_is_taken_back_ranks_among_the_noes() -> None:
    windows = JudgedWindows()
    said = [
        firing(0, True, 5.0, 0, 0.8),
        silent(1, Stratum.BULK, True, False, 0.9),
        silent(2, Stratum.TOKEN, True, True, 0.7),
        silent(3, Stratum.BULK, False, None, 0.05),
        silent(4, Stratum.NEIGHBOUR, True, None, 0.6),  # asked again in vain
    ]
    windows.add(Verdicts(tuple(said)).to_json(), 8)
    own = windows.probabilities[0]
    assert own is not None
    np.testing.assert_allclose(own[0], [0.8, 0.1, 0.7, 0.05, 0.6])
    assert own[1].tolist() == [-1, 3, 1, 3, 0]


def test_false_yeses_that_are_said_twice_lower_the_area() -> None:
    def label(again: bool) -> list[Verdict]:
        return [
            *(firing(n, True, 5.0, 0, 0.8) for n in range(100)),
            *(silent(n, Stratum.BULK, True, again, 0.9) for n in range(100, 130)),
            *(silent(n, Stratum.BULK, False, None, 0.05) for n in range(130, 200)),
        ]

    confirmed, taken_back = label(True), label(False)
    found = figures([confirmed, confirmed, taken_back])
    assert float(found[2]["auprc"]) > 0.8 > 0.5 > float(found[0]["auprc"])  # type: ignore[arg-type]
