"""Which windows of a latent a person may have seen before an edit, so that its score rests on others (DESIGN 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select, type_coerce
from sqlalchemy.types import Text

from autointerp.evidence import EvidenceStore, LatentEvidence
from autointerp.review.effective import EffectiveLabel
from autointerp.review.recording import is_human
from autointerp.store.models import ExplanationRow, VerdictRow
from autointerp.store.store import LabelStore
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


def seen_by_editors(
    store: LabelStore,
    run_id: str,
    source: str,
    windows: Path | None,
    labels: Sequence[EffectiveLabel],
    steered: Callable[[int], frozenset[tuple[int, int]]] = lambda latent: frozenset(),
) -> dict[int, tuple[str, ...]]:
    """Of those of a source's labels that a person wrote, by latent: the windows (``context:position``) that the person may
    have seen before, also where the run took the label from elsewhere. Without the source's exemplar store (``windows``)
    nothing is known of labels that were edited in this run. ``steered``: the windows that a latent's page shows as prompts of
    texts written under steering.
    """
    found = _seen_elsewhere(store, run_id, source)
    edited = [label for label in labels if label.explainer is not None and is_human(label.explainer)]
    if windows is None or not edited:
        return {latent: places for latent, places in found.items() if latent not in {label.latent for label in edited}}
    from sae_core.exemplar_store import ExemplarStore

    exemplars = ExemplarStore.open(windows)
    for label in edited:
        seen = seen_before(store, run_id, source, label.latent, label.explainer or "", exemplars)
        names = [f"{context}:{position}" for context, position in sorted(seen.places | steered(label.latent))]
        found[label.latent] = tuple(dict.fromkeys([*names, *found.get(label.latent, ())]))
    return found


def _seen_elsewhere(store: LabelStore, run_id: str, source: str) -> dict[int, tuple[str, ...]]:
    """The windows that must not be scored of labels that the run took from elsewhere."""
    query = select(ExplanationRow.latent, ExplanationRow.exemplar_ids).where(
        ExplanationRow.run_id == run_id, ExplanationRow.source == source, ExplanationRow.explainer == "imported"
    )
    query = query.where(type_coerce(ExplanationRow.exemplar_ids, Text) != "[]")  # of a million, nearly all
    with store.reading() as connection:
        return {row.latent: tuple(row.exemplar_ids) for row in connection.execute(query).all() if row.exemplar_ids}


def seen_before(
    store: LabelStore, run_id: str, source: str, latent: int, explainer: str, exemplars: EvidenceStore
) -> SeenWindows:
    """What may have been seen before the text of ``explainer`` (``human``, ``human.2``, ...) was written."""
    # windows that this very text was judged on are no reason to leave them out: they stand in its own scores
    rows = [row for row in store.verdicts(run_id, source, [latent]) if row.explainer != explainer]
    return seen_windows(LatentEvidence(latent, exemplars), rows)


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
