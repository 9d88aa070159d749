"""Texts that scorers had written, on their way from the stage that asks for them to the scores: a JSON file a chunk.

They are written once for a label and run for each latent that is scored under it: its own, and in the controls another one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from autointerp.evidence import LatentEvidence
from autointerp.judging.written_texts import WrittenTexts
from autointerp.pipeline.atomic_files import atomic_write
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkSpec
from autointerp.scorers.base import Scorer
from sae_core.tried_texts import TriedText, load_tried_texts

WrittenFor = Literal["labels", "shuffled"]
"""A chunk's own labels, or those that the controls give its latents."""


def writers(context: RunContext) -> list[Scorer]:
    """The configured scorers that have texts written."""
    return [scorer for scorer in context.scorers if scorer.writes_texts]


def save_written(path: Path, writings: Sequence[WrittenTexts]) -> None:
    """Write a chunk's texts, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps([one.model_dump(mode="json") for one in writings]), encoding="utf-8")


def load_written(path: Path) -> list[WrittenTexts]:
    """A chunk's texts, none where it has none."""
    if not path.is_file():
        return []
    return [WrittenTexts.model_validate(one) for one in json.loads(path.read_text(encoding="utf-8"))]


def texts_to_try(writings: Iterable[WrittenTexts]) -> dict[int, list[tuple[int, str]]]:
    """What ``sae_core.text_trial.try_texts`` takes: each latent's texts, once each however many labels they were written from."""
    found: dict[int, dict[str, None]] = {}
    for one in writings:
        found.setdefault(one.latent, {}).update(dict.fromkeys(one.texts))
    return {latent: [(0, text) for text in texts] for latent, texts in found.items()}


def with_written(
    context: RunContext, spec: ChunkSpec, what: WrittenFor, evidence: Iterable[LatentEvidence]
) -> Iterator[LatentEvidence]:
    """The evidence of a chunk's latents with the texts that were written and run for them, where there are any."""
    folder = context.folder
    writings: dict[int, list[WrittenTexts]] = {}
    for one in load_written(folder.written(spec.source, what, spec.ordinal)):
        writings.setdefault(one.latent, []).append(one)
    tried: dict[int, list[TriedText]] = {}
    path = folder.tried_written(spec.source, what, spec.ordinal)
    for text in load_tried_texts(path) if path.is_file() else ():
        tried.setdefault(text.latent, []).append(text)
    for item in evidence:
        own = tuple(writings.get(item.latent, ()))
        yield replace(item, written=own, tried=tuple(tried.get(item.latent, ()))) if own else item
