"""What a run can say of its estimates as a whole, for ``summary.json``: on what they rest, and how they were checked."""

from __future__ import annotations

from collections import Counter
from typing import Any

from autointerp.pipeline.context import RunContext
from autointerp.pipeline.natural_rate.labels import AUDIT, estimated_judge, fit_of, last_estimates
from autointerp.pipeline.natural_rate.resolution import judge_resolution
from autointerp.statistics.natural_rate import JudgeResolution
from autointerp.statistics.natural_rate.audit import MIN_SHARE


def precision_record(context: RunContext) -> dict[str, Any] | None:
    """The block ``precision``; None where no precision is estimated from a judge's verdicts.

    ``by`` (the scorer), ``sources`` by name (``audit_covered`` of ``audit_total`` labels, ``audit_needed``, ``prior_num_latents``,
    ``prior_num_yes``, ``bases``, ``failures``, ``lost_questions`` of the audit and of screens), ``false_yes`` (the judge's, under labels that fit nothing and under other latents'
    labels, with bounds) and ``agreement`` (second answers like the first).
    """
    judge = estimated_judge(context)
    if judge is None:
        return None
    sources: dict[str, Any] = {}
    company = agreed = 0
    for source in context.sources:
        if source.control:
            continue
        fit = fit_of(context, source.name)
        failed = Counter(
            row.failure_kind for row in last_estimates(context, source.name).values() if row.failure_kind is not None
        )
        total = (fit or {}).get("audit_total") or 0
        lost: Counter[str] = Counter()
        for row in context.store.screens(context.run_id, source.name):
            lost[AUDIT if row.stage == AUDIT else "screen"] += sum(row.items.get("failures", {}).values())
        sources[source.name] = {
            **(fit or {}),
            "audit_needed": -int(-MIN_SHARE * total // 1),
            "failures": dict(failed.most_common()),
            "lost_questions": {stage: count for stage, count in lost.items() if count},
        }
        for _, _, values, _ in context.store.values_of_judge(context.run_id, source.name, judge.kind):
            company += _count(values.get(f"{judge.kind}_company"))
            agreed += _count(values.get(f"{judge.kind}_agreed"))
    resolution = judge_resolution(context)
    return {
        "by": judge.kind,
        "sources": sources,
        "false_yes": {
            "null_labels": None if resolution is None else _rate(resolution.of_null_labels),
            "shuffled_labels": None if resolution is None else _rate(resolution.of_shuffled_labels),
        },
        "agreement": {"asked_again": company, "agreed": agreed, "share": agreed / company if company else None},
    }


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _rate(judge: JudgeResolution) -> dict[str, Any]:
    low, high = judge.bounds()
    share = judge.false_yes_rate if judge.judged else None
    return {"judged": int(judge.judged), "yes": int(judge.yes), "rate": share, "low": low, "high": high}
