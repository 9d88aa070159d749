"""How much a token may have done for it: jobs at a time, and what all its runs together may spend."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import func, select

from autointerp.server.access import Principal
from autointerp.server.tokens import NANO, token_named
from autointerp.store import LabelStore
from autointerp.store.models import ENDED, LLMBudget, LLMReservation, Run
from sae_core.errors import BudgetError


class Bound(NamedTuple):
    """The most that one run may spend on language models: its own ``[budget]``; None where it sets no bound."""

    tokens: int | None
    nano_usd: int | None

    @classmethod
    def of(cls, tokens: int | None, usd: float | None) -> Bound:
        """From what a configuration says."""
        return cls(tokens, round(usd * NANO) if usd is not None else None)


FREE = Bound(0, 0)
"""Of a job that asks no language model."""


def check_quota(
    stores: Collection[LabelStore],
    tokens_in: LabelStore,
    principal: Principal,
    *,
    jobs: int,
    asked: Bound = FREE,
    waiting: Sequence[Bound] = (),
) -> None:
    """Refuse a job that its token does not pay for.

    A run that may go on counts with all that it may spend, not with what it has spent so far, so that runs begun at once cannot
    exceed together what each alone would not. Call it in the lock or the transaction that adds the job.

    ``stores``: those that may hold runs of the principal; ``jobs``: how many of its jobs are queued or under way;
    ``waiting``: bounds of queued ones that are no run of a store yet. Errors: BudgetError.
    """
    if principal.token_id is None:
        return
    token = token_named(tokens_in, principal.token_id)
    if token.max_jobs is not None and jobs >= token.max_jobs:
        raise BudgetError(
            f"{jobs} jobs of this token are queued or under way, and it may have {token.max_jobs}: wait for one to end."
        )
    if token.budget_tokens is None and token.budget_nano_usd is None:
        return
    bounds = [*waiting, asked, *(bound for store in stores for bound in _committed(store, token.name))]
    for what, most, each in (
        ("tokens", token.budget_tokens, [bound.tokens for bound in bounds]),
        ("usd", token.budget_nano_usd, [bound.nano_usd for bound in bounds]),
    ):
        if most is None:
            continue
        known = [amount for amount in each if amount is not None]
        if len(known) < len(each):
            raise BudgetError(
                f"this token may spend a bounded number of {what}: give the run a budget in {what} too, and see that its others have one."
            )
        if sum(known) > most:
            scale = NANO if what == "usd" else 1
            raise BudgetError(
                f"with this the runs of this token may spend {sum(known) / scale:,.12g} {what}, and it has {most / scale:,.12g}: "
                "give the run a smaller budget, or end another."
            )


def _committed(store: LabelStore, name: str) -> list[Bound]:
    """Of each run of a token what it has spent and, where it may go on, may still spend."""
    spent = select(
        Run.id,
        Run.state,
        func.coalesce(func.max(LLMBudget.spent_tokens), 0).label("tokens"),
        func.coalesce(func.max(LLMBudget.spent_nano_usd), 0).label("nano_usd"),
    ).outerjoin(LLMBudget, LLMBudget.run_id == Run.id)
    held = (
        select(LLMReservation.run_id, func.sum(LLMReservation.tokens), func.sum(LLMReservation.nano_usd))
        .join(Run, Run.id == LLMReservation.run_id)
        .where(Run.owner == name)
        .group_by(LLMReservation.run_id)
    )
    caps = select(Run.id, Run.config).where(Run.owner == name, Run.state.not_in(ENDED))
    with store.reading() as connection:
        rows = connection.execute(spent.where(Run.owner == name).group_by(Run.id, Run.state)).all()
        reserved = {run_id: (int(tokens), int(usd)) for run_id, tokens, usd in connection.execute(held)}
        budgets = {run_id: _cap(config) for run_id, config in connection.execute(caps)}
    found = []
    for row in rows:
        more = reserved.get(row.id, (0, 0))
        bound = Bound(int(row.tokens) + more[0], int(row.nano_usd) + more[1])
        if row.id in budgets:
            bound = Bound(*(_larger(cap, so_far) for cap, so_far in zip(budgets[row.id], bound, strict=True)))
        found.append(bound)
    return found


def _cap(config: dict[str, object]) -> Bound:
    """The bound of a stored configuration; a run without endpoints spends nothing."""
    if not config.get("endpoints"):
        return FREE
    budget = config.get("budget")
    given = budget if isinstance(budget, dict) else {}
    return Bound.of(given.get("tokens"), given.get("usd"))


def _larger(cap: int | None, so_far: int | None) -> int | None:
    return None if cap is None or so_far is None else max(cap, so_far)
