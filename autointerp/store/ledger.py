"""What a run's calls to language models came to: sums over its ledger, by purpose and by latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import case, func, select

from autointerp.store.models import LLMCall
from autointerp.store.store import LabelStore

_NANO = 10**9


class Spend(NamedTuple):
    """What some calls took, lost ones (which may have been billed without a reply) among them."""

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


def spend(store: LabelStore, run_id: str) -> Spend:
    """All that a run spent."""
    with store.reading() as connection:
        return _spend(connection.execute(select(*_SUMS).where(LLMCall.run_id == run_id)).one())


def spend_by_purpose(store: LabelStore, run_id: str) -> dict[tuple[str, str], Spend]:
    """Spend by (purpose, endpoint), in the order of the first call.

    Purposes are kinds of explainers and scorers, ``probe``, and ``abandoned`` for calls of a process that died.
    """
    query = select(LLMCall.purpose, LLMCall.endpoint, *_SUMS).where(LLMCall.run_id == run_id)
    with store.reading() as connection:
        rows = connection.execute(
            query.group_by(LLMCall.purpose, LLMCall.endpoint).order_by(func.min(LLMCall.id))
        ).all()
    return {(str(row[0]), str(row[1])): _spend(row[2:]) for row in rows}


def spend_by_latent(store: LabelStore, run_id: str, source: str, latents: Sequence[int]) -> dict[int, Spend]:
    """Spend on each of some latents of a source; those that nobody was asked about are left out."""
    if not latents:
        return {}
    wanted = set(latents)
    query = select(LLMCall.latent, *_SUMS).where(
        LLMCall.run_id == run_id, LLMCall.source == source, LLMCall.latent.between(min(wanted), max(wanted))
    )
    with store.reading() as connection:
        rows = connection.execute(query.group_by(LLMCall.latent)).all()
    return {int(row[0]): _spend(row[1:]) for row in rows if int(row[0]) in wanted}


_SUMS = (
    func.count(),
    func.sum(case((LLMCall.outcome == "lost", 1), else_=0)),
    func.sum(LLMCall.input_tokens),
    func.sum(LLMCall.cached_tokens),
    func.sum(LLMCall.output_tokens),
    func.sum(LLMCall.cost_nano_usd),
    func.sum(case((LLMCall.cost_nano_usd.is_(None), 1), else_=0)),
    func.sum(LLMCall.seconds),
)


def _spend(values: Sequence[Any]) -> Spend:
    *counts, seconds = values
    calls, lost, read, cached, written, nano, unpriced = (int(value or 0) for value in counts)
    return Spend(calls, lost, read, cached, written, None if unpriced else nano / _NANO, float(seconds or 0.0))
