"""Reads Neuronpedia's bulk explanations: ``<model>/<source>/explanations/batch-N.jsonl.gz``, one explanation a line.

A latent may have several explanations, by several authors, models and methods; which one is taken is said by
``author`` and ``type_name``, and of those that are left it is the first that is not empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from autointerp.imports.json_lines import json_lines, optional_text
from autointerp.imports.label_line import LabelLine, LabelRequest, latent_number
from sae_core.errors import ConfigError

KEYS = frozenset({"index", "description"})
"""What a line must have."""


def batch_order(path: Path) -> tuple[str, list[int | str]]:
    """Batches by folder and number: batch-2 before batch-10."""
    parts = re.split(r"(\d+)", path.name)
    return str(path.parent), [int(part) if part.isdecimal() else part for part in parts]


def neuronpedia_labels(files: Sequence[Path], request: LabelRequest) -> Iterator[LabelLine]:
    """The wanted explanations in the order of the batches; an empty description is a line without a text."""
    for path in sorted(files, key=batch_order):
        for place, value in json_lines(path):
            missing = sorted(KEYS - value.keys())
            if missing:
                raise ConfigError(
                    f"{place} has no key {missing[0]!r}: Neuronpedia's explanations have index and description."
                )
            author = optional_text(value, "authorId", place) or ""
            kind = optional_text(value, "typeName", place) or ""
            if (request.author and author != request.author) or (request.type_name and kind != request.type_name):
                continue
            text = optional_text(value, "description", place)
            yield LabelLine(
                place=place,
                latent=latent_number(value["index"], place),
                text=text if text and text.strip() else None,
                source=optional_text(value, "layer", place) or "",
                model=optional_text(value, "explanationModelName", place) or "",
                kind=kind,
                author=author,
                reason="its description is empty",
            )
