"""What the estimate of precision and recall at the natural rate asks beside the scorer's own windows (METHODS 4).

How often a screen flags and a judge says yes is supposed (``statistics.natural_rate.expectation``); what is asked at most is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autointerp.config.run import SCREEN_PROMPT
from autointerp.config.sections import PrecisionConfig
from autointerp.judging.screening import COMPANY, most_answer_tokens
from autointerp.planning.planned import (
    ITEM_TOKENS,
    LABEL_KEY_TOKENS,
    LINE_TOKENS,
    PlannedCalls,
    PlanSizes,
    num_calls,
    planned_calls,
)
from autointerp.planning.second_asking import second_asking, supposed_labels
from autointerp.prompting.prompt import load_prompt
from autointerp.scorers.detection import DetectionScorer
from autointerp.statistics.natural_rate.counts import BULK
from autointerp.statistics.natural_rate.expectation import TYPICAL
from autointerp.statistics.natural_rate.grid import Floats


@dataclass(frozen=True, slots=True)
class EstimateCalls:
    """Calls of one sort that an estimate takes."""

    what: str
    """For a person."""
    planned: PlannedCalls
    """For one label."""
    audit: bool = False
    """Whether only the audit's labels are asked about."""


def estimate_calls(
    scorer: DetectionScorer, precision: PrecisionConfig, labels: Sequence[int] | None, sizes: PlanSizes
) -> list[EstimateCalls]:
    """Calls for one label in the mean; ``labels`` of each source, None where they are not known (then calls of a screen are full)."""
    kind, found = scorer.kind, []
    # a screen shows windows of the scored side, and such a scorer's windows are of all of them
    if precision.screen_windows and scorer.leak_free:
        found.append(EstimateCalls("screen", _screen(scorer, precision, precision.screen_windows, labels, sizes)))
        if precision.verified:
            found.append(EstimateCalls(f"{kind}, flagged", _flagged(scorer, precision, sizes)))
    audited = _audited(scorer, precision, labels)
    if audited:
        found.append(EstimateCalls(f"{kind}, audit", _audit(scorer, audited, sizes), audit=True))
        if precision.screen_windows and scorer.leak_free:
            sampled = None if labels is None else [min(precision.audit_latents, count) for count in labels]
            found.append(
                EstimateCalls("screen, audit", _screen(scorer, precision, audited, sampled, sizes), audit=True)
            )
    if precision.screen_windows and scorer.leak_free and precision.rounds > 1:
        again, windows = precision.rounds - 1, precision.round_windows
        screen = _screen(scorer, precision, windows, labels, sizes)
        found.append(EstimateCalls("screen, more rounds", _times(screen, again)))
        verified = _verified(scorer, precision, windows, sizes)
        found.append(EstimateCalls(f"{kind}, more rounds", _times(verified, again)))
    return found


def bulk_windows(windows: int) -> int:
    """Of the windows of a screen, those that are silent for a latent and near nothing of it, about."""
    return round(windows * TYPICAL.weight[BULK])


def _screen(
    scorer: DetectionScorer, precision: PrecisionConfig, windows: int, labels: Sequence[int] | None, sizes: PlanSizes
) -> PlannedCalls:
    """A label's part of calls that show all windows with ``screen_labels`` labels at a time."""
    groups, labelled = 1, precision.screen_labels
    if labels:
        groups, labelled = sum(-(-count // precision.screen_labels) for count in labels), sum(labels)
    calls = num_calls(windows, 1, precision.screen_per_call)
    shown, listed = windows / calls, labelled / groups
    flags = supposed_labels((0, 0, 0, 0), windows, 0).screen
    assert flags is not None, "it was screened"
    share = float(np.mean(flags.flagged) / windows)
    return planned_calls(
        load_prompt(SCREEN_PROMPT),
        SCREEN_PROMPT,
        scorer.endpoint,
        calls=calls * groups / labelled,
        filled=sizes.windows(0)
        + listed * (sizes.label_tokens + LINE_TOKENS)
        + sizes.windows(shown, context_tokens=scorer.context_tokens),
        # brackets for each window, and the numbers in them
        answer=LABEL_KEY_TOKENS + shown * ITEM_TOKENS + share * shown * listed * ITEM_TOKENS,
        most_answer=most_answer_tokens(
            min(windows, precision.screen_per_call),
            precision.screen_labels if not labels else min(precision.screen_labels, max(labels)),
        ),
    )


def _flagged(scorer: DetectionScorer, precision: PrecisionConfig, sizes: PlanSizes) -> PlannedCalls:
    """What flagged windows add to the calls about the scorer's own windows, and to the second asking."""
    silent, own, per_call = scorer.silent_by_stratum, scorer.firing + scorer.silent, scorer.per_call
    counts = supposed_labels(silent, bulk_windows(precision.screen_windows), precision.verified)
    assert counts.screen is not None, "it was screened"
    yes = counts.yes.sum(axis=1)
    verified, confirmed = counts.screen.verified, counts.screen.confirmed

    def added(windows: Floats, before: Floats, doubtful: Floats) -> PlannedCalls:
        calls = float(np.mean(-(-(own + windows) // per_call))) - num_calls(own, 1, per_call)
        shown = float(np.mean(windows))
        if scorer.confirm:
            without = second_asking(before, own, per_call)
            again = second_asking(before + doubtful, own + windows, per_call)
            calls, shown = calls + again[0] - without[0], shown + again[1] - without[1]
        return scorer.planned_windows(sizes, calls, shown)

    all_flagged = np.array([float(precision.verified)])
    most = added(all_flagged, np.array([float(scorer.silent)]), all_flagged)
    return replace(added(verified, yes, confirmed), most=most)


def _verified(scorer: DetectionScorer, precision: PrecisionConfig, windows: int, sizes: PlanSizes) -> PlannedCalls:
    """A full call about flagged windows and others, as a label gets in a further round, and its second asking."""
    counts = supposed_labels((0, 0, 0, 0), bulk_windows(windows), precision.verified).screen
    assert counts is not None, "it was screened"
    most = max(scorer.per_call, precision.verified + COMPANY)

    def asked(shown: int, confirmed: Floats) -> PlannedCalls:
        calls, seen = float(num_calls(shown, 1, scorer.per_call)), float(shown)
        if scorer.confirm:
            again = second_asking(confirmed, np.full(len(confirmed), shown), scorer.per_call)
            calls, seen = calls + again[0], seen + again[1]
        return scorer.planned_windows(sizes, calls, seen)

    return replace(asked(scorer.per_call, counts.confirmed), most=asked(most, np.array([float(most)])))


def _audited(scorer: DetectionScorer, precision: PrecisionConfig, labels: Sequence[int] | None) -> int:
    """Further windows of an audit label, in the mean over the sources' audit labels."""
    judged = scorer.firing + scorer.silent
    if labels is None:
        return precision.audit_size(10**9, judged, scorer.per_call)
    counts = [min(precision.audit_latents, count) for count in labels]
    if not sum(counts):
        return 0
    sizes = [precision.audit_size(count, judged, scorer.per_call) for count in labels]
    return round(sum(a * b for a, b in zip(counts, sizes, strict=True)) / sum(counts))


def _audit(scorer: DetectionScorer, windows: int, sizes: PlanSizes) -> PlannedCalls:
    """The audit of one label."""
    calls = num_calls(windows, 1, scorer.per_call)

    def asked(again: tuple[float, float]) -> PlannedCalls:
        return scorer.planned_windows(sizes, calls + again[0], windows + again[1])

    if not scorer.confirm:
        return asked((0.0, 0.0))
    yes = supposed_labels((0, 0, 0, windows)).yes.sum(axis=1)
    expected = asked(second_asking(yes, windows, scorer.per_call))
    return replace(expected, most=asked(second_asking([windows], windows, scorer.per_call)))


def _times(planned: PlannedCalls, count: int) -> PlannedCalls:
    """The same, so many times over."""
    return replace(
        planned,
        calls=planned.calls * count,
        joined_tokens=planned.joined_tokens * count,
        joined_answer_tokens=planned.joined_answer_tokens * count,
        most=None if planned.most is None else _times(planned.most, count),
    )
