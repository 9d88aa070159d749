"""How many labels a run's budget still has room for, in a further round of the screen.

Rounds make intervals narrower and no figure possible that was not there before, so a run with little left goes on without them
instead of pausing.
"""

from __future__ import annotations

from autointerp.pipeline.context import RunContext
from autointerp.pipeline.natural_rate.labels import estimated_judge
from autointerp.store.ledger import Spend, spend, spend_by_purpose

_VERIFYING = 0.5
"""Share of what the scorer's own windows took that the verification of a round takes, about."""


def affordable_labels(context: RunContext) -> int | None:
    """Labels that may have a further round, by what the first one took; None where the budget sets no limit.

    Half of what is left stays free, because a round may take more than the one before it.
    """
    budget, settings = context.config.budget, context.config.precision
    judge = estimated_judge(context)
    if judge is None or (budget.tokens is None and budget.usd is None):
        return None
    store, run_id = context.store, context.run_id
    judged = sum(
        not failed
        for source in context.sources
        for _, _, _, failed in store.values_of_judge(run_id, source.name, judge.kind)
    )
    purposes = [(purpose, spent) for (purpose, _), spent in spend_by_purpose(store, run_id).items()]
    screening = _total([spent for purpose, spent in purposes if purpose == "screen"])
    judging = _total([spent for purpose, spent in purposes if purpose == judge.kind])
    all_spent = spend(store, run_id)
    rounds = settings.round_windows / max(settings.screen_windows, 1)
    room: list[float] = []
    if budget.tokens is not None:
        each = (screening[0] * rounds + judging[0] * _VERIFYING) / max(judged, 1)
        left = budget.tokens - all_spent.input_tokens - all_spent.output_tokens
        room.append(left / 2 / max(each, 1))
    if budget.usd is not None and all_spent.cost_usd is not None:
        dollars = (screening[1] * rounds + judging[1] * _VERIFYING) / max(judged, 1)
        room.append((budget.usd - all_spent.cost_usd) / 2 / max(dollars, 1e-12))
    return max(0, int(min(room))) if room else None


def _total(spends: list[Spend]) -> tuple[int, float]:
    """(tokens, dollars)."""
    return sum(s.input_tokens + s.output_tokens for s in spends), sum(s.cost_usd or 0.0 for s in spends)
