"""What the label of a latent is once people have spoken: the machine's row stands, and reviews are laid over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from autointerp.failure import FailureKind, LatentStatus
from autointerp.review.recording import Review, human_explainer, reviews
from autointerp.store.models import LabelRow
from autointerp.store.store import LabelStore


@dataclass(frozen=True, slots=True)
class EffectiveLabel:
    """A label row with its reviews laid over it; the fields are those of ``store.models.LabelRow``."""

    latent: int
    """The latent."""
    status: str
    """A LatentStatus."""
    text: str | None
    """The label, None unless the status is ``labelled``."""
    text_output: str | None
    """The label of what the latent does; reviews do not touch it."""
    explainer: str | None
    """Kind of the explainer whose text it is, under which its scores stand."""
    decided_by: str
    """Who or what decided."""
    failure_kind: str | None
    """A FailureKind where there is no label."""
    failure_message: str | None
    """One sentence on why there is none."""
    created_at: datetime
    """When it was decided, UTC."""


def effective(reviewed: Sequence[Review], label: LabelRow | EffectiveLabel) -> EffectiveLabel:
    """The label after the reviews of its latent, oldest first; the last word holds.

    An edit puts a person's text in the place of the label; a rejection takes the label away; accepting keeps the text that
    stood last, also after a rejection.
    """
    text, explainer, edits = label.text, label.explainer, 0
    for review in reviewed:
        if review.action == "edit":
            edits += 1
            text, explainer = review.text, human_explainer(edits)
    last = reviewed[-1] if reviewed else None
    if last is None or (text is None and last.action == "accept"):
        return EffectiveLabel(
            label.latent,
            label.status,
            label.text,
            label.text_output,
            label.explainer,
            label.decided_by,
            label.failure_kind,
            label.failure_message,
            label.created_at,
        )
    if last.action == "reject":
        why = f": {last.note}" if last.note else ""
        return EffectiveLabel(
            label.latent,
            LatentStatus.FAILED.value,
            None,
            label.text_output,
            None,
            f"rejected by {last.by}",
            FailureKind.REJECTED.value,
            f"rejected by {last.who_and_when}{why}",
            last.created_at,
        )
    word = "accepted" if last.action == "accept" else "edited"
    return EffectiveLabel(
        label.latent,
        LatentStatus.LABELLED.value,
        text,
        label.text_output,
        explainer,
        f"{word} by {last.by}",
        None,
        None,
        last.created_at,
    )


def effective_labels(
    store: LabelStore, run_id: str, source: str, latents: Sequence[int] | None = None
) -> list[EffectiveLabel]:
    """The labels of a source (of some latents) after all reviews, by latent."""
    found: dict[int, list[Review]] = {}
    for review in reviews(store, run_id, source, latents):
        found.setdefault(review.latent, []).append(review)
    return [effective(found.get(row.latent, ()), row) for row in store.labels(run_id, source, latents)]
