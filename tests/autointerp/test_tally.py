"""Stored verdicts counted by stratum, against a count of the verdicts themselves."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.failure import FailureKind
from autointerp.judging.tally import LabelTally, Tally, counts_of, pool_counts, unscreened
from autointerp.judging.verdicts import Verdict, Verdicts
from autointerp.sampling.silent import SILENT_STRATA
from autointerp.sampling.window import Stratum
from autointerp.statistics.natural_rate import estimate_natural_rates

ANSWERS = st.sampled_from([True, False, None])


@st.composite
def some_verdict(draw: st.DrawFn) -> Verdict:
    stratum = draw(st.sampled_from(list(Stratum)))
    answer = draw(ANSWERS)
    flagged = stratum is Stratum.FLAGGED or (stratum is Stratum.BULK and draw(st.booleans()))
    return Verdict(
        window="0:0",
        stratum=stratum,
        truth=stratum is Stratum.FIRING,
        answer=answer,
        failure=FailureKind.UNPARSEABLE if answer is None else None,
        again=None if answer is None else draw(ANSWERS),
        flagged=flagged,
    )


def stored(verdicts: Verdicts) -> dict[str, object]:
    """As it comes back from a database."""
    found: dict[str, object] = json.loads(json.dumps(verdicts.to_json()))
    return found


@given(st.lists(some_verdict(), max_size=40))
def test_a_tally_counts_what_counts_of_each_verdict(items: list[Verdict]) -> None:
    tally = Tally.of(stored(Verdicts(tuple(items))))
    firing = [v.confirmed for v in items if v.stratum is Stratum.FIRING and v.confirmed is not None]
    assert (tally.firing_judged, tally.firing_yes) == (len(firing), sum(firing))
    for place, stratum in enumerate(SILENT_STRATA):
        own = [v.confirmed for v in items if v.stratum is stratum and not v.flagged and v.confirmed is not None]
        assert (tally.judged[place], tally.yes[place]) == (len(own), sum(own)), stratum
    flagged = [v.confirmed for v in items if v.flagged and v.confirmed is not None]
    assert (tally.verified, tally.confirmed) == (len(flagged), sum(flagged))
    assert tally.num_undecided == sum(v.answer is True and v.confirmed is None for v in items)


def test_of_no_verdicts_nothing_is_counted() -> None:
    assert Tally.of(stored(Verdicts(()))) == Tally()
    assert pool_counts(stored(Verdicts(()))) == (0, 0, 0, 0)


def test_the_pool_comes_in_the_order_of_the_strata() -> None:
    pool = {Stratum.BULK: 7, Stratum.TOKEN: 3, Stratum.NEIGHBOUR: 5}
    assert pool_counts(stored(Verdicts((), pool, 0.1))) == (5, 3, 0, 7)


@st.composite
def some_tally(draw: st.DrawFn, screened: bool) -> Tally:
    judged = draw(st.tuples(*[st.integers(0, 30)] * 4))
    yes = draw(st.tuples(*(st.integers(0, most) for most in judged)))
    firing = draw(st.integers(0, 30))
    verified = draw(st.integers(0, 20)) if screened else 0
    return Tally(
        firing_judged=firing,
        firing_yes=draw(st.integers(0, firing)),
        judged=(judged[0], judged[1], judged[2], judged[3]),
        yes=(yes[0], yes[1], yes[2], yes[3]),
        verified=verified,
        confirmed=draw(st.integers(0, verified)),
    )


@st.composite
def some_label(draw: st.DrawFn) -> LabelTally:
    screened = draw(st.integers(0, 500))
    tallies = st.lists(some_tally(screened > 0), min_size=1, max_size=3)
    return LabelTally(
        rate=draw(st.floats(1e-4, 0.9)),
        pool=draw(st.tuples(*[st.integers(1, 1000)] * 4)),
        tallies=tuple(draw(tallies)),
        audit=draw(some_tally(screened > 0)),
        screened=screened,
        flagged=draw(st.integers(0, screened)),
    )


@given(st.lists(some_label(), min_size=1, max_size=6))
def test_the_estimators_counts_are_sums_over_the_rounds(labels: list[LabelTally]) -> None:
    counts = counts_of(labels)
    assert len(counts) == len(labels)
    anywhere = any(label.screened for label in labels)
    assert (counts.screen is not None) is anywhere
    for row, label in enumerate(labels):
        rounds = label.tallies
        assert counts.pi[row] == label.rate
        assert counts.pool[row].tolist() == list(label.pool)
        assert counts.firing_judged[row] == sum(tally.firing_judged for tally in rounds)
        assert counts.firing_yes[row] == sum(tally.firing_yes for tally in rounds)
        assert counts.judged[row].tolist() == [sum(tally.judged[h] for tally in rounds) for h in range(4)]
        assert counts.yes[row].tolist() == [sum(tally.yes[h] for tally in rounds) for h in range(4)]
        assert (counts.audit_judged[row], counts.audit_yes[row]) == (label.audit.judged[3], label.audit.yes[3])
        if counts.screen is not None:
            assert (counts.screen.screened[row], counts.screen.flagged[row]) == (label.screened, label.flagged)
            # the audit checks a fit that has seen nothing of it, so nothing of it counts among the flagged windows
            assert counts.screen.verified[row] == sum(tally.verified for tally in rounds)
            assert counts.screen.confirmed[row] == sum(tally.confirmed for tally in rounds)


@given(st.lists(st.tuples(some_label(), st.booleans()), min_size=1, max_size=6))
def test_windows_that_no_screen_has_seen_are_parted_by_the_judge_itself(pairs: list[tuple[LabelTally, bool]]) -> None:
    """No verdict is lost, no other label changes, and what is flagged, verified and missed together give back the plain sample."""
    labels = [replace(label, plain=plain) for label, plain in pairs]
    counts, others = counts_of(labels), counts_of([label for label, _ in pairs])
    if counts.screen is None or others.screen is None:
        assert not any(label.screened for label in labels)
        assert (counts.judged == others.judged).all()
        return
    assert counts.num_bulk_yes == others.num_bulk_yes
    for row, label in enumerate(labels):
        judged, yes = (label.tallies[0].judged[3], label.tallies[0].yes[3]) if label.plain else (0, 0)
        assert counts.screen.screened[row] == label.screened + judged
        assert counts.screen.flagged[row] == label.flagged + yes
        assert counts.screen.verified[row] == others.screen.verified[row] + yes
        assert counts.screen.confirmed[row] == others.screen.confirmed[row] + yes
        assert counts.judged[row].tolist() == (others.judged[row] - [0, 0, 0, yes]).tolist()
        assert counts.yes[row].tolist() == (others.yes[row] - [0, 0, 0, yes]).tolist()


def test_a_label_whose_screen_failed_is_no_worse_off_among_screened_ones() -> None:
    """Of 40 labels that never say yes in the bulk and 40 that do in a tenth of it, half have no screen: the rates are theirs all the same."""
    pool, no, yes = (0, 0, 0, 5000), Tally(20, 20, (0, 0, 0, 40)), Tally(20, 20, (0, 0, 0, 36))
    flags = replace(yes, verified=10, confirmed=10)
    screened = [LabelTally(0.01, pool, (no,), screened=400), LabelTally(0.01, pool, (flags,), screened=400, flagged=40)]
    tenth = Tally(20, 20, (0, 0, 0, 40), (0, 0, 0, 4))
    plain = [LabelTally(0.01, pool, (no,), plain=True), LabelTally(0.01, pool, (tenth,), plain=True)]
    rates = estimate_natural_rates(counts_of([*screened * 20, *plain * 20]), seed=0)
    assert [len(set(figure.tolist())) for figure in (rates.bulk_rate.median[:40], rates.bulk_rate.median[40:])] == [
        2,
        2,
    ]
    for first in (0, 40):
        assert rates.bulk_rate.high[first] < 0.1
        assert rates.bulk_rate.median[first] < 0.01
        assert rates.bulk_rate.low[first + 1] < 0.1 < rates.bulk_rate.high[first + 1]
        assert rates.bulk_rate.median[first + 1] == pytest.approx(0.1, rel=0.25)


def test_a_lost_second_answer_counts_by_the_share_of_yeses_that_are_said_again() -> None:
    """Only a yes can lose its second answer: to leave such windows out would make every label look better than it is."""
    pool = (0, 0, 0, 5000)
    whole = LabelTally(0.1, pool, (Tally(20, 20, (0, 0, 0, 40), (0, 0, 0, 15), taken_back=5),))
    lossy = LabelTally(0.1, pool, (Tally(20, 20, (0, 0, 0, 20), undecided=(0, 0, 0, 20, 0)),))
    flagged = LabelTally(0.1, pool, (Tally(20, 20, undecided=(0, 0, 0, 0, 4)),), screened=100, flagged=4)
    counts = counts_of([whole, lossy, flagged])
    share = 15.5 / 21
    assert counts.judged[1].tolist() == [0, 0, 0, 40]
    assert counts.yes[1, 3] == pytest.approx(20 * share)
    assert counts.screen is not None
    assert (counts.screen.verified[2], counts.screen.confirmed[2]) == (4, pytest.approx(4 * share))
    assert counts.yes[0, 3] == 15


def test_without_its_screen_a_label_is_judged_by_its_uniform_windows_alone() -> None:
    strata = {"f": Stratum.FIRING, "n": Stratum.NEIGHBOUR, "b": Stratum.BULK, "s": Stratum.FLAGGED}
    items = Verdicts(
        tuple(
            Verdict(f"{n}:0", strata[letter.lower()], letter == "f", said, again=again, flagged=letter in "Bs")
            for n, (letter, said, again) in enumerate(
                [
                    ("f", True, None),
                    ("n", False, None),
                    ("b", False, None),
                    ("B", True, True),
                    ("s", True, True),
                    ("s", True, True),
                ]
            )
        ),
        {Stratum.BULK: 9},
        0.1,
    ).to_json()
    assert Tally.of(items) == Tally(1, 1, (1, 0, 0, 1), verified=3, confirmed=3)
    assert Tally.of(unscreened(items)) == Tally(1, 1, (1, 0, 0, 2), (0, 0, 0, 1))
