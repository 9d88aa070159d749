"""A person's word on a label, as it is kept: rows are only ever added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from autointerp.imports.label_line import clean_label
from autointerp.store.column_types import utc_now
from autointerp.store.models import ExplanationRow, ReviewRow
from autointerp.store.store import LabelStore
from sae_core.errors import InputError, StoreError

Action = Literal["accept", "reject", "edit"]
LONGEST_TEXT, LONGEST_NAME, LONGEST_NOTE = 500, 60, 2_000
"""Characters of an edited label, of a person's name and of a note."""
HUMAN = "human"
"""Kind of explainer under which a person's text and its scores stand; from the second edit of a latent on with its number."""


@dataclass(frozen=True, slots=True)
class Review:
    """One person's word on one latent's label."""

    id: int
    """Ordinal in the store."""
    latent: int
    """The latent."""
    action: Action
    """What was said of the label."""
    text: str | None
    """The better label of an edit."""
    by: str
    """Who said it."""
    note: str | None
    """Why."""
    created_at: datetime
    """When, UTC."""

    @property
    def who_and_when(self) -> str:
        """``ann on 2026-03-01``."""
        return f"{self.by} on {self.created_at:%Y-%m-%d}"


def human_explainer(edit: int) -> str:
    """Explainer of a latent's edit number ``edit``, from 1: ``human``, ``human.2``, ..."""
    return HUMAN if edit == 1 else f"{HUMAN}.{edit}"


def is_human(explainer: str) -> bool:
    """Whether a person's edit stands under this explainer."""
    return explainer == HUMAN or explainer.startswith(f"{HUMAN}.")


def record_review(
    store: LabelStore,
    run_id: str,
    source: str,
    latent: int,
    action: Action,
    text: str | None,
    by: str,
    note: str | None = None,
) -> Review:
    """Adds a review and, for an edit, the text as an explanation, in one transaction.

    Errors: InputError for a text or a name that does not do, StoreError where somebody edited at the same moment.
    """
    text, by, note = _checked(action, text, by, note)
    values = {
        "run_id": run_id,
        "source": source,
        "latent": latent,
        "action": action,
        "text": text,
        "by": by,
        "note": note,
        "created_at": utc_now(),
    }
    try:
        with store.writing() as connection:
            edit = 1 + _num_edits(connection, run_id, source, latent)
            number = connection.execute(insert(ReviewRow).values(**values).returning(ReviewRow.id)).scalar_one()
            if text is not None:
                connection.execute(
                    insert(ExplanationRow).values(
                        run_id=run_id,
                        source=source,
                        latent=latent,
                        explainer=human_explainer(edit),
                        side="input",
                        text=text,
                        payload={"review": {"id": number, "by": by}},
                        exemplar_ids=[],
                        input_tokens=0,
                        output_tokens=0,
                        cost_usd=0.0,
                        created_at=values["created_at"],
                    )
                )
    except IntegrityError as error:
        raise StoreError(
            f"somebody edited latent {latent} of {source!r} at the same moment: look at the label and say it again."
        ) from error
    return reviews(store, run_id, source, [latent])[-1]


def reviews(store: LabelStore, run_id: str, source: str, latents: Sequence[int] | None = None) -> list[Review]:
    """The reviews of a source (of some latents), by latent and in the order in which they were made."""
    query = select(ReviewRow).where(ReviewRow.run_id == run_id, ReviewRow.source == source)
    if latents is not None:
        if not latents:
            return []
        # a range in the query, not a list: databases limit the number of parameters
        query = query.where(ReviewRow.latent.between(min(latents), max(latents)))
    wanted = None if latents is None else set(latents)
    with store.reading() as connection:
        rows = connection.execute(
            query.with_only_columns(
                ReviewRow.id,
                ReviewRow.latent,
                ReviewRow.action,
                ReviewRow.text,
                ReviewRow.by,
                ReviewRow.note,
                ReviewRow.created_at,
            ).order_by(ReviewRow.latent, ReviewRow.id)
        ).all()
    return [
        Review(row.id, row.latent, cast(Action, row.action), row.text, row.by, row.note, row.created_at)
        for row in rows
        if wanted is None or row.latent in wanted
    ]


def _num_edits(connection: Connection, run_id: str, source: str, latent: int) -> int:
    query = select(ReviewRow.id).where(
        ReviewRow.run_id == run_id,
        ReviewRow.source == source,
        ReviewRow.latent == latent,
        ReviewRow.action == "edit",
    )
    return len(connection.execute(query).all())


def _checked(action: Action, text: str | None, by: str, note: str | None) -> tuple[str | None, str, str | None]:
    """The texts as they are kept. Errors: InputError."""
    if action not in ("accept", "reject", "edit"):
        raise InputError(f"{action!r} is no review: say accept, reject or edit.")
    if (action == "edit") != (text is not None):
        raise InputError("an edit has a text, and only an edit has one: give the better label with it.")
    name = clean_label(by)
    if not 0 < len(name) <= LONGEST_NAME:
        raise InputError(f"the name {by!r:.80} has {len(name)} characters: say who reviews, in 1 to {LONGEST_NAME}.")
    label = None if text is None else clean_label(text)
    if label is not None and not 0 < len(label) <= LONGEST_TEXT:
        raise InputError(f"the label has {len(label)} characters: give 1 to {LONGEST_TEXT}.")
    if note is not None and len(note) > LONGEST_NOTE:
        raise InputError(f"the note has {len(note)} characters: give at most {LONGEST_NOTE}.")
    return label, name, note or None
