"""What judges said of labels, beside what they said of wrong ones, how often they said nothing, and what it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from autointerp.judging.steered_judge import OUTPUT_LABEL, STEERED_KINDS
from autointerp.report.figures import numbers, percent_text, plain, share_text
from autointerp.report.highlight import plain_line

MOST_FAILED = 0.03
"""Share of a judge's questions that may stay without an answer before a run says so at its end: those that fail are seldom
a random part of them."""
_ENDING = "_score"
_NULL = ("nothing", "everything", "empty")
"""Labels that say nothing of a latent: chance is what they should get."""
_ARMS = {"labels": "labels", "shuffled": "shuffled labels", "random_direction": "random directions"}


def judged_block(alive: pd.DataFrame, controls: pd.DataFrame, judgings: pd.DataFrame) -> dict[str, Any]:
    """Every judge's headline figure: medians over alive latents (0 where there is none), shuffled labels, random directions.

    A judge of the run is here also where it has no figure at all; its median is None then. Beside each median stands
    ``failed``: what has no figure or no answer, by the failure. Judges of texts written under steering look at a sample of the
    latents, so their medians are over those of it; what they say of output labels is no part of this (``label_effect_block``).
    """
    block: dict[str, Any] = {}
    for column in (str(name) for name in alive.columns):
        kind = column.removesuffix(_ENDING)
        if kind == column or column.startswith(OUTPUT_LABEL):
            continue
        rated = asked_rows(alive, kind) if kind in STEERED_KINDS else alive
        values = numbers(rated, column)
        rows = judgings[judgings["scorer"] == kind] if "scorer" in judgings.columns else _NO_JUDGINGS
        block[kind] = {
            "median": None if np.isnan(values).all() else _median(np.nan_to_num(values)),
            "median_defined": _median(values[~np.isnan(values)]),
            "num_defined": int((~np.isnan(values)).sum()),
            "num_latents": len(values),
            "failed": _failed(rows, "labels"),
            "models": sorted({model for models in rows["models"] for model in models}),
            "asked_model": next(iter(rows["asked_model"].dropna()), None),
            **{
                name: _control(controls, name, column) | {"failed": _failed(rows, name)}
                for name in ("shuffled", "random_direction")
            },
            "null_labels": {name: _control(controls, f"null_{name}", column) for name in _NULL},
        }
    return block


def asked_rows(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The latents of which a scorer says something: a figure, or why it has none."""
    failures = table[f"{kind}_failure"] if f"{kind}_failure" in table.columns else pd.Series(None, index=table.index)
    return table[~np.isnan(numbers(table, f"{kind}{_ENDING}")) | failures.notna().to_numpy(dtype=np.bool_)]


_NO_JUDGINGS = pd.DataFrame(
    {name: [] for name in ("arm", "failure", "judged", "failed", "failures", "models", "asked_model")}
)


def _failed(judgings: pd.DataFrame, arm: str) -> dict[str, Any]:
    """Scores without a figure and questions without an answer of one arm."""
    rows = judgings[judgings["arm"] == arm]
    questions = int(rows["judged"].sum() + rows["failed"].sum())
    by_kind: Counter[str] = Counter()
    for failures in rows["failures"]:
        by_kind.update(failures)
    return {
        "scores": dict(Counter(str(kind) for kind in rows["failure"].dropna()).most_common()),
        "num_scores": len(rows),
        "questions": {kind: int(count) for kind, count in by_kind.most_common()},
        "num_questions": questions,
        "share": plain(rows["failed"].sum() / questions) if questions else None,
    }


def _control(controls: pd.DataFrame, kind: str, column: str) -> dict[str, Any]:
    rows = controls[controls["kind"] == kind] if "kind" in controls.columns else controls
    values = numbers(rows, column) if column in rows.columns else np.empty(0)
    values = values[~np.isnan(values)]
    return {
        "median": _median(values),
        "mean": plain(values.mean()) if len(values) else None,
        "num_latents": len(values),
    }


def _median(values: Any) -> float | None:
    return plain(np.median(values)) if len(values) else None


def judges_table(block: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row a judge."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("scores by judges, median")
    for name in ("labels", "shuffled", "random directions", "judged", "no answer"):
        table.add_column(name, justify="right")
    for kind, row in block.items():
        table.add_row(
            kind,
            Text(share_text(row["median"]), style="bold"),
            share_text(row["shuffled"]["median"]),
            share_text(row["random_direction"]["median"]),
            f"{row['num_defined']:,} of {row['num_latents']:,}",
            Text(_shares(row), style="bold red" if _most_failed(row) > MOST_FAILED else ""),
        )
    return table


def judge_notes(block: Mapping[str, Mapping[str, Any]]) -> list[Text]:
    """What must be said of judges: answers that are missing, and other models than those that were asked."""
    notes = []
    for kind, row in block.items():
        if _most_failed(row) > MOST_FAILED:
            parts = []
            for arm, words in _ARMS.items():
                failed = _of_arm(row, arm)
                if failed["share"]:
                    kinds = ", ".join(f"{plain_line(name)} {count:,}" for name, count in failed["questions"].items())
                    parts.append(f"{percent_text(failed['share'])} on {words} ({kinds} of {failed['num_questions']:,})")
            said = f"Warning: {kind} has no answer to part of its questions, and they are in no figure: {', '.join(parts)}."
            notes.append(Text(said, style="bold red"))
    others = {(row["asked_model"], model) for row in block.values() for model in row["models"]}
    for asked in sorted({str(asked) for asked, model in others if asked is not None and model != asked}):
        answered = sorted(plain_line(model) for name, model in others if name == asked)
        notes.append(Text(f"Judge: {plain_line(asked)} was asked, {' and '.join(answered)} answered."))
    return notes


def _of_arm(row: Mapping[str, Any], arm: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = row["failed"] if arm == "labels" else row[arm]["failed"]
    return found


def _most_failed(row: Mapping[str, Any]) -> float:
    return max(_of_arm(row, arm)["share"] or 0.0 for arm in _ARMS)


def _shares(row: Mapping[str, Any]) -> str:
    """Shares without an answer of labels, shuffled labels and random directions, or one figure where all are the same."""
    shares = [_of_arm(row, arm)["share"] for arm in _ARMS]
    known = {percent_text(share) for share in shares if share is not None}
    return known.pop() if len(known) == 1 else " · ".join(map(percent_text, shares)) if known else percent_text(None)
