"""Which windows of a latent a person may have seen before an edit, so that its score rests on others (DESIGN 5.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autointerp.evidence import LatentEvidence
from autointerp.store.models import VerdictRow
from sae_core.records import Origin, Side


@dataclass(frozen=True, slots=True)
class SeenWindows:
    """Places of windows, (context, position)."""

    judged: frozenset[tuple[int, int]]
    """Windows about which a judge was asked, under any label of this latent."""
    displayed: frozenset[tuple[int, int]]
    """Windows that reports and ``autointerp show`` print of it, with the windows before them that stand there as context."""

    @property
    def places(self) -> frozenset[tuple[int, int]]:
        """All of them."""
        return self.judged | self.displayed


def seen_windows(evidence: LatentEvidence, verdicts: Sequence[VerdictRow]) -> SeenWindows:
    """The windows of one latent that a person may have seen, from its verdict rows and its exemplars of the score side."""
    judged = frozenset(place for row in verdicts for place in _places(row.items))
    displayed: set[tuple[int, int]] = set()
    pool = evidence.store.pool(Side.SCORE)
    length = pool.tokens.shape[1] - pool.context_tokens
    for origin in Origin:
        for exemplar in evidence.store.exemplars(evidence.latent, Side.SCORE, origin):
            displayed.add((exemplar.context, exemplar.position))
            # a window begins where the one before it ends, and that one is printed as its context
            for before in range(
                exemplar.position - length, exemplar.position - len(exemplar.context_ids) - length, -length
            ):
                displayed.add((exemplar.context, max(before, 0)))
    return SeenWindows(judged, frozenset(displayed))


def _places(items: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Every ``context:position`` in the lists ``windows`` and ``company`` of a verdict row, whatever scorer wrote it."""
    names = [*items.get("windows", ()), *(name for names in items.get("company", ()) for name in names)]
    for name in names:
        context, _, position = str(name).partition(":")
        yield int(context), int(position)
