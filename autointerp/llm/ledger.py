"""What a run's calls came to: sums over the ledger, by purpose and by latent."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import case, func, select

from autointerp.llm.pricing import NANO
from autointerp.store.calls import Account, account
from autointerp.store.models import LLMCall
from autointerp.store.store import LabelStore


class Spend(NamedTuple):
    """Sums over some calls."""

    calls: int
    """Calls that were, or may have been, paid."""
    lost: int
    """Those of them that left no reply."""
    input_tokens: int
    cached_tokens: int
    """Of the input tokens, as far as servers say."""
    output_tokens: int
    cost_usd: float | None
    """None where the price of one of them is not known."""
    seconds: float
    """Time of the calls, added up."""


class Ledger(NamedTuple):
    """All calls of a run."""

    total: Spend
    by_purpose: dict[str, Spend]
    """By what they were for: kinds of explainers and scorers, ``probe``, ``abandoned`` (by a process that died)."""
    by_latent: dict[tuple[str, int], Spend]
    """By (source, latent); calls of no latent are left out."""
    account: Account
    """What the budget has been charged, and what is reserved."""


def ledger(store: LabelStore, run_id: str) -> Ledger:
    """The sums over a run's ledger."""
    with store.reading() as connection:
        total = connection.execute(_sums().where(LLMCall.run_id == run_id)).one()
        purposes = connection.execute(
            _sums(LLMCall.purpose).where(LLMCall.run_id == run_id).group_by(LLMCall.purpose).order_by(LLMCall.purpose)
        ).all()
        latents = connection.execute(
            _sums(LLMCall.source, LLMCall.latent)
            .where(LLMCall.run_id == run_id, LLMCall.latent.is_not(None))
            .group_by(LLMCall.source, LLMCall.latent)
            .order_by(LLMCall.source, LLMCall.latent)
        ).all()
        standing = account(connection, run_id, lock=False)
    return Ledger(
        _spend(total),
        {str(row[0]): _spend(row[1:]) for row in purposes},
        {(str(row[0]), int(row[1])): _spend(row[2:]) for row in latents},
        standing,
    )


def _sums(*by: Any) -> Any:
    unpriced = func.sum(case((LLMCall.cost_nano_usd.is_(None), 1), else_=0))
    return select(
        *by,
        func.count(),
        func.sum(case((LLMCall.outcome == "lost", 1), else_=0)),
        func.sum(LLMCall.input_tokens),
        func.sum(LLMCall.cached_tokens),
        func.sum(LLMCall.output_tokens),
        func.sum(LLMCall.cost_nano_usd),
        unpriced,
        func.sum(LLMCall.seconds),
    )


def _spend(row: Any) -> Spend:
    calls, lost, given, cached, written, nano_usd, unpriced, seconds = row
    return Spend(
        int(calls),
        int(lost or 0),
        int(given or 0),
        int(cached or 0),
        int(written or 0),
        None if unpriced else int(nano_usd or 0) / NANO,
        float(seconds or 0.0),
    )
