"""The second table of an export: one row a judged window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from autointerp.failure import FailureKind
from autointerp.judging.verdicts import stratum_names
from sae_core.errors import StoreError

VERDICTS_FOLDER = "_verdicts"
"""Begins with an underscore, so that readers of the dictionary's folder leave it alone."""
_COLUMNS: tuple[tuple[str, Any, bool, str], ...] = (
    ("source", pa.string(), False, "Name of the source."),
    ("latent", pa.int64(), False, "Index of the latent in the coder."),
    ("scorer", pa.string(), False, "Kind of the scorer that asked."),
    ("explainer", pa.string(), True, "Kind of the explainer whose label was judged; null for a judgement without one."),
    ("context", pa.int64(), False, "Ordinal of the window's context in the corpus."),
    ("position", pa.int64(), False, "Position of the window's first token in its context."),
    ("stratum", pa.string(), False, "What the window was drawn from."),
    ("truth", pa.bool_(), False, "The right answer; for a choice among several always true."),
    ("verdict", pa.bool_(), True, "What the judge said; for a choice whether it chose right; null where it failed."),
    ("again", pa.bool_(), True, "What it said when it was asked once more; null where it was not, or failed."),
    ("probability", pa.float64(), True, "Probability of a yes, where the server gives it."),
    ("failure", pa.string(), True, "Why there is no verdict."),
    ("flagged", pa.bool_(), False, "Whether a screen had flagged the window for this label."),
    ("peak", pa.float64(), True, "Largest activation in the window, by magnitude; null where that was not kept."),
    ("first", pa.int64(), True, "Position in the window of the first firing token; null as before."),
    ("company", pa.list_(pa.string()), True, "Other windows shown with it as one question, as `context:position`."),
)


def verdict_schema() -> pa.Schema:
    """The pyarrow schema of the table."""
    return pa.schema(
        [pa.field(name, kind, nullable=null, metadata={"description": text}) for name, kind, null, text in _COLUMNS]
    )


def verdict_markdown() -> str:
    """The table of docs/dictionary.md."""
    lines = ["| column | null | what it holds |", "|---|---|---|"]
    lines += [f"| `{name}` | {'possible' if null else 'never'} | {text} |" for name, _, null, text in _COLUMNS]
    return "\n".join(lines) + "\n"


def verdicts_of(source: str, rows: Sequence[tuple[int, str, str, Any]]) -> pa.Table:
    """``(latent, scorer, explainer, items)`` as the store has them, a row a window. Errors: StoreError."""
    try:
        return _verdicts(source, rows)
    except (KeyError, TypeError, ValueError, pa.ArrowInvalid) as error:
        raise StoreError(
            f"the verdicts of the latents {rows[0][0]} to {rows[-1][0]} of {source!r} cannot be read ({error}): "
            "score these latents again, or export without verdicts."
        ) from error


def _verdicts(source: str, rows: Sequence[tuple[int, str, str, Any]]) -> pa.Table:
    counts = [len(row[3]["windows"]) for row in rows]
    place = pa.array([number for number, count in enumerate(counts) for _ in range(count)], pa.int64())

    def each(values: Sequence[Any], kind: Any) -> pa.Array:
        return pa.array(values, kind).take(place)

    def many(name: str, kind: Any) -> pa.Array:
        found: list[Any] = []
        for row, count in zip(rows, counts, strict=True):
            found.extend(row[3].get(name) or [None] * count)
        return pa.array(found, kind)

    def signs(name: str) -> pa.Array:
        text = "".join(row[3].get(name) or "-" * count for row, count in zip(rows, counts, strict=True))
        return pa.array([{"1": True, "0": False, "-": None}[sign] for sign in text], pa.bool_())

    windows = pc.split_pattern(many("windows", pa.string()), ":")
    letters = "".join(row[3]["strata"] for row in rows)
    names = stratum_names()
    failures = many("failures", pa.string())
    for kind in pc.unique(failures.drop_null()).to_pylist():
        FailureKind(kind)
    table = {
        "source": pa.repeat(pa.scalar(source), len(place)),
        "latent": each([row[0] for row in rows], pa.int64()),
        "scorer": each([row[1] for row in rows], pa.string()),
        "explainer": each([row[2] or None for row in rows], pa.string()),
        "context": pc.list_element(windows, 0).cast(pa.int64()),
        "position": pc.list_element(windows, 1).cast(pa.int64()),
        "stratum": pa.array([names[letter][0] for letter in letters], pa.string()),
        "truth": signs("truths"),
        "verdict": signs("answers"),
        "again": signs("again"),
        "probability": many("probabilities", pa.float64()),
        "failure": failures,
        "flagged": pa.array([names[letter][1] for letter in letters], pa.bool_()),
        "peak": many("peaks", pa.float64()),
        "first": many("firsts", pa.int64()),
        "company": many("company", pa.list_(pa.string())),
    }
    schema = verdict_schema()
    return pa.table([table[field.name] for field in schema], schema=schema)
