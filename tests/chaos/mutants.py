"""Guards taken out, one at a time, to see that experiments fail: CHAOS_BREAK=tests.chaos.mutants:no_fence pytest tests/chaos/test_quick.py."""

from __future__ import annotations

from typing import Any


def no_fence() -> None:
    """Whoever worked on a chunk may finish it. Row 5 must fail."""
    from autointerp.store import chunks
    from autointerp.store.models import Chunk

    chunks._ours = lambda lease: (Chunk.id == lease.chunk_id,)


def no_renewal() -> None:
    """Leases run out under who holds them. Row 11 must fail."""
    from autointerp.store import LabelStore

    LabelStore.renew = lambda self, lease, lease_s: True  # type: ignore[method-assign]


def no_stored_reply() -> None:
    """Replies are kept under no key. Row 1 must fail: a chunk that is done again asks all of its calls again."""
    from autointerp.llm.session import LLMSession

    record = LLMSession._record

    def without_key(self: Any, key: str | None, *more: Any) -> Any:
        return record(self, None, *more)

    LLMSession._record = without_key  # type: ignore[method-assign]


def nothing_settled() -> None:
    """What dead processes had reserved stays reserved. Rows 1 and 2 must fail."""
    from autointerp.cluster import reconciling

    reconciling.settle_abandoned = lambda *_: None  # type: ignore[assignment]
