"""Reads the labels of a run from its store, where a person's word on them counts at once; its dictionary may be older."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from autointerp.imports.label_line import LabelLine, LabelRequest
from autointerp.imports.split import Split
from sae_core.errors import ConfigError

if TYPE_CHECKING:
    from autointerp.store.store import LabelStore

_NOTE, _MANIFEST = "run.json", "_manifest.json"
_TEXTS = ("label", "label_output")
"""Columns of a dictionary that hold labels: what a run has of them."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """A run that has ended."""

    store: LabelStore
    run_id: str


def run_folder_of(path: Path) -> Path | None:
    """The output folder of the run whose labels ``path`` holds: itself, or the one around its dictionary or part of it."""
    if (path / _NOTE).is_file():
        return path
    folder = path.parent if path.is_file() and (path.parent / _MANIFEST).is_file() else path
    if folder.name != "dictionary" or not (folder / _MANIFEST).is_file() or not (folder.parent / _NOTE).is_file():
        return None
    from autointerp.export.manifest import read_manifest
    from autointerp.pipeline.folder import RunFolder

    note = RunFolder(folder.parent).read_note()
    return folder.parent if note is not None and note.run_id in read_manifest(folder).run_ids else None


def run_state(folder: Path) -> tuple[int, ...]:
    """Numbers that change with every review. Errors: ConfigError, StoreError."""
    from autointerp.store.models import ReviewRow

    with _opened(folder) as run, run.store.reading() as connection:
        query = select(func.count(ReviewRow.id), func.max(ReviewRow.id)).where(ReviewRow.run_id == run.run_id)
        count, last = connection.execute(query).one()
    return int(count), int(last or 0)


def run_split(folder: Path) -> Split | None:
    """How the run dealt its corpus to sides. Errors: ConfigError, StoreError."""
    with _opened(folder) as run:
        return Split.of(run.store.run(run.run_id).config)


def run_windows(folder: Path, source: str) -> Path | None:
    """The exemplar store of a source, where it is there."""
    from autointerp.pipeline.folder import RunFolder

    with _opened(folder) as run:
        reused = run.store.run(run.run_id).config["extraction"].get("reuse")
    found = RunFolder(folder, None if reused is None else Path(reused)).exemplars(source)
    return found if (found / "index.json").is_file() else None


def run_lines(folder: Path, request: LabelRequest) -> Iterator[LabelLine]:
    """The labels of all sources after all reviews; what has none stands as a line without a text.

    Errors: ConfigError for a run that has not ended, StoreError.
    """
    if request.label_column not in _TEXTS or request.latent_column != "latent":
        raise ConfigError(
            f"label_column is {request.label_column!r} and latent_column {request.latent_column!r}, and the labels of a run are "
            f"{' or '.join(_TEXTS)} by latent: leave the two out, or give a parquet file that has such columns."
        )
    from autointerp.pipeline.starting import open_run
    from autointerp.review.effective import effective_labels
    from autointerp.review.seen import seen_by_editors
    from autointerp.review.shown_steering import windows_shown

    with _opened(folder) as run:
        corpus = (run.store.artefact(run.run_id, "corpus") or {}).get("fingerprint") or ""
        for source in run.store.sources(run.run_id):
            if source.control:
                continue
            models, sides = _written(run, source.name)
            labels = effective_labels(run.store, run.run_id, source.name)
            steered = partial(windows_shown, open_run(run.store, run.run_id, folder), source.name)
            seen = seen_by_editors(
                run.store, run.run_id, source.name, run_windows(folder, source.name), labels, steered
            )
            for label in labels:
                text = label.text if request.label_column == "label" else label.text_output
                yield LabelLine(
                    place=f"latent {label.latent} of {source.name!r}",
                    latent=label.latent,
                    text=text,
                    source=source.name,
                    fingerprint=source.coder_fingerprint,
                    model=models.get((label.latent, label.explainer or ""), ""),
                    kind=label.explainer or "",
                    author=run.run_id,
                    reason=label.failure_message or f"its status is {label.status}",
                    corpus=corpus,
                    sides=sides.get(label.latent, ""),
                    seen=seen.get(label.latent),
                )


def _written(run: _Opened, source: str) -> tuple[dict[tuple[int, str], str], dict[int, str]]:
    """Models by latent and explainer; and of latents whose labels the run took from elsewhere how the sides stand there."""
    from autointerp.store.models import ExplanationRow

    of_source = (ExplanationRow.run_id == run.run_id, ExplanationRow.source == source)
    with run.store.reading() as connection:
        named = connection.execute(
            select(ExplanationRow.latent, ExplanationRow.explainer, ExplanationRow.model).where(
                *of_source, ExplanationRow.model.is_not(None)
            )
        ).all()
        taken = connection.execute(
            select(ExplanationRow.latent, ExplanationRow.payload).where(
                *of_source, ExplanationRow.explainer == "imported", ExplanationRow.failure_kind.is_(None)
            )
        ).all()
    models = {(row.latent, row.explainer): row.model for row in named}
    return models, {row.latent: row.payload.get("imported", {}).get("sides", "unknown") for row in taken}


@contextmanager
def _opened(folder: Path) -> Iterator[_Opened]:
    from autointerp.pipeline.finding import find_run

    store, run_id = find_run(str(folder))
    try:
        state = store.run(run_id).state
        if state != "done":
            raise ConfigError(
                f"the run in {str(folder)!r} has not ended (its state is {state!r}), so its labels are not known yet: go on with "
                "it by the command that started it."
            )
        yield _Opened(store, run_id)
    finally:
        store.close()
