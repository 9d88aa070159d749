"""``summary.json``: what a run found, beside what its controls found.

Medians count every latent: where a figure is not defined (no label, a label that holds nowhere) it counts as 0, so that a
run cannot look better by leaving latents out. The medians over labelled latents stand beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autointerp.report.causal import causal_block, steering_block
from autointerp.report.figures import counts_of, median, numbers, plain
from autointerp.report.judges import judged_block
from autointerp.report.label_effect import label_effect_block
from autointerp.report.precision import precision_block
from autointerp.statistics.bootstrap import paired_difference

SUMMARY_VERSION = "1.3"
STATUSES = ("labelled", "dead", "rare", "failed")
HARD_TOKEN_RULE_F1 = 0.7
"""Below it the tokens alone do not say when the latent fires: there a label has something to add."""
_METRICS = ("precision", "recall", "f1")
_FLOORS = ("shuffled", "null_nothing", "null_everything", "token_rule", "random_direction")
_SHUFFLED_BALANCED_ACCURACY = (0.47, 0.55)

Floats = NDArray[np.float64]


def build_summary(
    table: pd.DataFrame,
    controls: pd.DataFrame,
    run: Mapping[str, Any],
    timings: Mapping[str, float],
    files: Mapping[str, str],
    rng: np.random.Generator,
    resamples: int = 2000,
    judgings: pd.DataFrame | None = None,
    precision: Mapping[str, Any] | None = None,
    causal: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The summary as JSON-ready values (None where not defined, never NaN).

    ``table`` has the dictionary's columns. ``controls`` has ``kind`` (shuffled, null_nothing, null_everything,
    token_rule or random_direction), ``latent`` and, where measured, ``source, precision, recall, f1, balanced_accuracy,
    causal_effect, causal_effect_low, ablation_kl``; a shuffled row is about the latent that was scored, not about
    the one whose label it was scored with. ``run`` is what is known about the run (JSON), ``timings`` seconds per stage
    in their order, ``files`` names to paths relative to the run's folder. With several sources, ``sources`` repeats the
    figures for each. Figures of ``comparisons`` are mean differences over latents in F1 with a 95% bootstrap interval;
    shuffled labels are compared over those alive latents that were scored under another's label (``num_pairs``).
    ``judgings`` has a row for each score of a judge, as ``pipeline.judge_records`` makes them; ``precision`` is what
    ``pipeline.natural_rate.record`` says of precision and recall that a judge's verdicts were turned into; ``causal`` what
    ``pipeline.causal_record`` says of effects that no column holds.
    """
    summary: dict[str, Any] = {"summary_version": SUMMARY_VERSION, "run": dict(run)}
    judged = pd.DataFrame() if judgings is None else judgings
    summary.update(_figures(table, controls, judged, rng, resamples))
    names = [str(name) for name in table["source"].drop_duplicates()] if "source" in table.columns else []
    summary["coders"] = _fingerprints(table, "source", "coder_fingerprint")
    summary["corpus"] = {
        "fingerprints": _distinct(table, "corpus_fingerprint"),
        "num_tokens": _largest(table, "num_tokens"),
        "num_windows": _largest(table, "num_windows"),
    }
    summary["subjects"] = _fingerprints(table, "subject", "subject_revision")
    summary["hookpoints"] = _fingerprints(table, "source", "hookpoint")
    if len(names) > 1:
        summary["sources"] = {
            name: _figures(
                table[table["source"] == name], _of_source(controls, name), _of_source(judged, name), rng, resamples
            )
            for name in names
        }
    summary["precision"] = precision_block(table[table["status"].astype(str) == "labelled"], precision)
    summary |= dict(causal or {})
    summary["timings_s"] = {stage: round(float(seconds), 3) for stage, seconds in timings.items()}
    summary["total_s"] = round(float(sum(timings.values())), 3)
    summary["files"] = dict(files)
    return summary


def summary_json(summary: Mapping[str, Any]) -> str:
    """The text of summary.json. Raises ValueError for NaN, which JSON does not have."""
    return json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _figures(
    table: pd.DataFrame, controls: pd.DataFrame, judgings: pd.DataFrame, rng: np.random.Generator, resamples: int
) -> dict[str, Any]:
    """Everything that is about latents, of one source or of all."""
    status = table["status"].astype(str)
    alive, labelled = table[status != "dead"], table[status == "labelled"]
    return {
        "latents": {
            "total": len(table),
            **{name: int((status == name).sum()) for name in STATUSES},
            "alive": len(alive),
            "failures": counts_of(table[status == "failed"], "failure"),
        },
        # labels in words alone have no figures of this kind: null is not 0
        "counted": bool(table["precision_method"].notna().any()) if "precision_method" in table.columns else True,
        "scores": {
            "all": _score_block(table),
            "alive": _score_block(alive),
            "labelled": _score_block(labelled),
        },
        "floors": {kind: _floor_block(_of_kind(controls, kind)) for kind in _FLOORS},
        "comparisons": _comparisons(alive, _of_kind(controls, "shuffled"), rng, resamples),
        "judged": judged_block(alive, controls, judgings),
        "labels": _label_block(labelled),
        "causal": causal_block(alive, _of_kind(controls, "random_direction")),
        "steering": steering_block(alive),
        "label_effect": label_effect_block(alive, controls),
    }


def _score_block(table: pd.DataFrame) -> dict[str, Any]:
    """Medians of the scores; what is not defined counts as 0."""
    block: dict[str, Any] = {"num_latents": len(table)}
    for metric in (*_METRICS, "correlation"):
        values = numbers(table, metric)
        defined = ~np.isnan(values)
        quartiles = np.quantile(np.where(defined, values, 0.0), [0.25, 0.5, 0.75]) if len(values) else [np.nan] * 3
        block[metric] = {
            "median": plain(quartiles[1]),
            "quartile_low": plain(quartiles[0]),
            "quartile_high": plain(quartiles[2]),
            "num_defined": int(defined.sum()),
        }
    return block


def _floor_block(rows: pd.DataFrame) -> dict[str, Any]:
    measured = rows[_measured(rows)]
    block: dict[str, Any] = {"num_latents": len(measured)}
    for metric in _METRICS:
        block[metric] = median(np.nan_to_num(numbers(measured, metric)))
    accuracy = numbers(rows, "balanced_accuracy")
    accuracy = accuracy[~np.isnan(accuracy)]
    block["balanced_accuracy_mean"] = plain(accuracy.mean()) if len(accuracy) else None
    if len(rows) and (rows["kind"] == "shuffled").all() and len(accuracy):
        low, high = _SHUFFLED_BALANCED_ACCURACY
        block["balanced_accuracy_alert"] = bool(not low <= accuracy.mean() <= high)
    return block


def _measured(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Rows of a control that are about precision and recall at all; others hold a judge's own figures, and null is not 0."""
    columns = np.stack([numbers(rows, metric) for metric in _METRICS])
    return np.asarray(~np.isnan(columns).all(axis=0), dtype=np.bool_)


def _comparisons(
    alive: pd.DataFrame, shuffled: pd.DataFrame, rng: np.random.Generator, resamples: int
) -> dict[str, Any]:
    """Paired differences in F1 over alive latents, what is not defined counted as 0 on either side."""
    label = np.nan_to_num(numbers(alive, "f1"))
    rule = np.nan_to_num(numbers(alive, "token_rule_f1"))
    if "precision_method" in alive.columns and not alive["precision_method"].notna().any():
        alive, label, rule = alive[:0], label[:0], rule[:0]  # nothing was measured on these latents
    counted = np.ones(len(alive), dtype=np.bool_)
    if "token_rule_f1" in alive.columns and not alive["token_rule_f1"].notna().any():
        counted[:] = False  # the rule was counted for none
    hard = rule < HARD_TOKEN_RULE_F1
    keys = ["source", "latent"] if {"source"} <= set(alive.columns) & set(shuffled.columns) else ["latent"]
    own = alive[keys].assign(
        label_f1=label, hard=hard, labelled=(alive["status"] == "labelled").to_numpy(dtype=np.bool_)
    )
    shuffled = shuffled[_measured(shuffled)]
    floor = shuffled[keys].assign(floor=np.nan_to_num(numbers(shuffled, "f1")))
    if floor.empty:  # without rows the keys have no type to join by
        floor = floor.astype(own[keys].dtypes.to_dict())
    pairs = own.merge(floor, on=keys, how="inner")
    paired, floors, hard_pairs = numbers(pairs, "label_f1"), numbers(pairs, "floor"), pairs["hard"].to_numpy(np.bool_)
    return {
        "label_minus_token_rule_f1": {
            "alive": asdict(paired_difference(label[counted], rule[counted], rng, resamples)),
            "token_rule_below_0.7": asdict(
                paired_difference(label[hard & counted], rule[hard & counted], rng, resamples)
            ),
        },
        "label_minus_shuffled_f1": {
            "alive": asdict(paired_difference(paired, floors, rng, resamples)),
            "token_rule_below_0.7": asdict(paired_difference(paired[hard_pairs], floors[hard_pairs], rng, resamples)),
            "only_labelled": bool(pairs["labelled"].all()),
        },
    }


def _label_block(labelled: pd.DataFrame) -> dict[str, Any]:
    """How often one label text stands for different latents: detection cannot see that."""
    texts = labelled["label"].dropna().astype(str) if "label" in labelled.columns else pd.Series([], dtype=str)
    counts = texts.value_counts()
    judged = labelled.get("precision_method", pd.Series(index=labelled.index, dtype=str)) == "judged"
    counted = ~judged.to_numpy(dtype=np.bool_)  # a judged label without a precision is one of which it is not known
    return {
        "distinct": len(counts),
        "most_common": str(counts.index[0]) if len(counts) else None,
        "largest_share": plain(counts.iloc[0] / len(labelled)) if len(counts) else None,
        # of labels made elsewhere: whether what their writers were shown is kept from being scored
        "sides": counts_of(labelled, "label_sides"),
        "holding_nowhere": int((np.isnan(numbers(labelled, "precision")) & counted).sum()),
    }


def _of_source(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    """Those of one source; rows of random directions carry the name of the coder beside which they stand."""
    return rows[rows["source"] == source] if "source" in rows.columns else rows


def _of_kind(controls: pd.DataFrame, kind: str) -> pd.DataFrame:
    if "kind" not in controls.columns:
        return pd.DataFrame({"kind": pd.Series([], dtype=str), "latent": pd.Series([], dtype=np.int64)})
    return controls[controls["kind"] == kind]


def _distinct(table: pd.DataFrame, column: str) -> list[str]:
    return sorted(table[column].dropna().astype(str).unique()) if column in table.columns else []


def _largest(table: pd.DataFrame, column: str) -> int | None:
    values = numbers(table, column)
    values = values[~np.isnan(values)]
    return int(values.max()) if len(values) else None


def _fingerprints(table: pd.DataFrame, name: str, fingerprint: str) -> dict[str, str | None]:
    if not {name, fingerprint} <= set(table.columns):
        return {}
    rows = table[[name, fingerprint]].drop_duplicates()
    return {str(key): None if pd.isna(value) else str(value) for key, value in rows.itertuples(index=False)}
