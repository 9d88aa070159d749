"""Explanations that are not final yet, between the rounds of an explainer that revises: a JSON file a chunk and round."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from autointerp.explanation import Explanation
from autointerp.pipeline.atomic_files import atomic_write


def save_drafts(path: Path, drafts: Sequence[Explanation]) -> None:
    """Write a chunk's drafts, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps([draft.model_dump(mode="json") for draft in drafts]), encoding="utf-8")


def load_drafts(path: Path) -> list[Explanation]:
    """A chunk's drafts, none where it has none."""
    if not path.is_file():
        return []
    return [Explanation.model_validate(draft) for draft in json.loads(path.read_text(encoding="utf-8"))]
