"""Calls that are made before there is a run to enter them in: those that find out what a server can do."""

from __future__ import annotations

import asyncio

from autointerp.llm.pricing import Budget, BudgetCap, cap_of
from autointerp.store.calls import NOTHING, Amount, CallRecord, StoredReply, enter, open_account
from autointerp.store.store import LabelStore
from sae_core.errors import BudgetError


class PriorCalls:
    """Holds calls to the budget of the run that is to be, and enters them in its ledger once it is there.

    Implements ``metered.Book``.
    """

    def __init__(self, budget: BudgetCap | None = None) -> None:
        """``budget``: of the run; no limit by default."""
        self._cap = cap_of(Budget() if budget is None else budget)
        self._spent = self._reserved = NOTHING
        self.records: list[CallRecord] = []
        """What was paid, or may have been."""

    async def open(self, key: str | None, most: Amount) -> StoredReply | None:
        """Reserve ``most``. Errors: BudgetError where the budget has no room for it."""
        if not self._cap.holds(self._spent.plus(self._reserved).plus(most)):
            raise BudgetError(
                f"the budget has no room for the few calls that find out what the endpoints can do: {self._spent.tokens:,} tokens are "
                f"spent and the next call may take {most.tokens:,}; raise [budget] and run the same command again."
            )
        self._reserved = self._reserved.plus(most)
        return None

    async def close(self, record: CallRecord | None, reserved: Amount) -> StoredReply | None:
        """Settle a reservation, and keep the call unless nothing was paid (None)."""
        self._reserved = self._reserved.minus(reserved)
        if record is not None:
            self._spent = self._spent.plus(record.amount)
            self.records.append(record)
        return None

    def close_soon(self, record: CallRecord | None, reserved: Amount) -> asyncio.Future[StoredReply | None]:
        """As ``close``, for a caller that is being cancelled."""
        return asyncio.ensure_future(self.close(record, reserved))

    def enter(self, store: LabelStore, run_id: str, owner: str) -> None:
        """Write the calls into a run's ledger, and charge its budget with them."""
        if self.records:
            with store.writing() as connection:
                open_account(connection, run_id, owner)
                enter(connection, run_id, self.records)
