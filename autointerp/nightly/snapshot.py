"""Dated snapshots: a table of the newest scores of all labels, one folder a date, there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.export.folder_swap import building_folder, put_in_place, sync_folder
from autointerp.export.manifest import MANIFEST_NAME, file_sha256
from autointerp.nightly.base import open_base
from autointerp.nightly.book import newest_scores
from autointerp.nightly.schedule import Schedule
from autointerp.pipeline.atomic_files import sync
from autointerp.review.effective import effective_labels
from autointerp.store import LabelStore
from autointerp.store.models import LatestScore, NightRow

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 8_192
"""Latents that are in memory at once, and rows of a row group at least."""
_FIGURES = (
    "score",
    "auroc",
    "tpr",
    "fpr",
    "precision",
    "precision_low",
    "precision_high",
    "recall",
    "judged",
    "failed",
)
"""Values of each scorer that have a column; those that it lacks stay empty."""


def snapshot_schema(scorers: list[str]) -> pa.Schema:
    """One row a latent; of each scorer its figures, when and by what they were made. Source and date are the folders' names."""
    import pyarrow as pa

    fields = [
        pa.field("latent", pa.int64(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("status", pa.string()),
    ]
    for scorer in scorers:
        fields += [pa.field(f"{scorer}_{name}", pa.float64()) for name in _FIGURES]
        fields += [
            pa.field(f"{scorer}_failure", pa.string()),
            pa.field(f"{scorer}_judge_model", pa.string()),
            pa.field(f"{scorer}_night", pa.string()),
            pa.field(f"{scorer}_scored_at", pa.timestamp("us", tz="UTC")),
            pa.field(f"{scorer}_run_id", pa.string()),
        ]
        fields += [pa.field(f"{scorer}_{name}_hash", pa.string()) for name in ("prompt", "judge", "settings", "label")]
    fields += [pa.field("coder_fingerprint", pa.string()), pa.field("corpus_fingerprint", pa.string())]
    return pa.schema(fields)


def write_snapshot(store: LabelStore, schedule: Schedule, night: NightRow) -> Path:
    """Write ``snapshots/date=.../source=.../part-0.parquet`` with a manifest; what was there of the date is replaced in one step."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    scorers = sorted(night.anchors["prints"]["scorers"])
    schema = snapshot_schema(scorers)
    place = schedule.snapshots / f"date={night.date}"
    files: list[dict[str, Any]] = []
    with open_base(store, schedule) as base, building_folder(place) as building:
        for source in base.sources:
            folder = building / f"source={source.name}"
            folder.mkdir()
            path, rows = folder / "part-0.parquet", 0
            with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
                wanted = schedule.latent_range(source.num_latents)
                for first in range(wanted.start, wanted.stop, _BLOCK):
                    block = range(first, min(first + _BLOCK, wanted.stop))
                    with store.reading() as connection:
                        scores = dict(newest_scores(connection, schedule.name, source.name, block))
                    labels = effective_labels(base.store, base.run_id, source.name, block)
                    about = {"coder_fingerprint": source.coder_fingerprint, "corpus_fingerprint": base.corpus}
                    batch = [
                        {"latent": label.latent, "label": label.text, "status": label.status}
                        | _columns(scores.get(label.latent, []), scorers)
                        | about
                        for label in labels
                    ]
                    if batch:
                        writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                    rows += len(batch)
            sync(path)
            sync_folder(folder)
            name = str(path.relative_to(building))
            files.append({"name": name, "rows": rows, "bytes": path.stat().st_size, "sha256": file_sha256(path)})
        manifest = {
            "format": "autointerp.snapshot",
            "schedule": schedule.name,
            "date": night.date,
            "run_id": night.run_id,
            "base": base.run_id,
            "num_rows": sum(part["rows"] for part in files),
            "files": files,
        }
        (building / MANIFEST_NAME).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        sync(building / MANIFEST_NAME)
        sync_folder(building)
        put_in_place(building, place)
    return place


def _columns(scores: list[LatestScore], scorers: list[str]) -> dict[str, Any]:
    return {name: value for score in scores if score.scorer in scorers for name, value in _of_scorer(score)}


def _of_scorer(score: LatestScore) -> Iterator[tuple[str, Any]]:
    for name in _FIGURES:
        value = score.values.get(name)
        if isinstance(value, int | float):
            yield f"{score.scorer}_{name}", float(value)
    yield f"{score.scorer}_failure", score.failure_kind
    yield f"{score.scorer}_judge_model", score.values.get("judge_model")
    for name in ("night", "scored_at", "run_id"):
        yield f"{score.scorer}_{name}", getattr(score, name)
    for name in ("prompt", "judge", "settings", "label"):
        yield f"{score.scorer}_{name}_hash", getattr(score, name)
