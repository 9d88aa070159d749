"""What a run found of its latents' effects, beside random pushes: a part of the summary, and sentences for the terminal (METHODS 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich.text import Text

from autointerp.judging.steered_judge import STEERED_KINDS
from autointerp.pipeline.ablation_budget import stands_for_dictionary
from autointerp.report.figures import (
    counts_of,
    interval_text,
    median,
    numbers,
    percent_text,
    ratio_text,
    share_of,
    share_text,
    signed_text,
)
from autointerp.report.highlight import plain_line

_PROMISED = ("lens", "output_tokens")
_MANY = 2000
"""Draws below which one in a thousand is no share to speak of."""


def causal_block(alive: pd.DataFrame, directions: pd.DataFrame) -> dict[str, Any]:
    """Effects of ablation over the dictionary, and the same of the random directions that went through the same stages.

    Only latents count that were not ablated because of what a screen expected of them. ``share_beyond_random`` is of those whose effect
    is above 97.5% of single random pushes at their tokens, ``share_unread`` of those whose ablation never exceeded the noise.
    """
    counted = standing(alive)
    effect, low, q = (numbers(counted, name) for name in ("causal_effect", "causal_effect_low", "causal_q"))
    control, control_low = numbers(directions, "causal_effect"), numbers(directions, "causal_effect_low")
    measured, controlled = ~np.isnan(effect), ~np.isnan(control)
    top = np.quantile(control[controlled], 0.95) if controlled.any() else np.nan
    share = numbers(counted, "ablation_share")
    return {
        "num_measured": int(measured.sum()),
        "num_chosen": counts_of(alive, "causal_chosen"),
        "median": median(effect),
        "share_interval_above_zero": share_of(low[measured] > 0),
        "share_beyond_random": _beyond(counted),
        "share_above_95_percent_of_controls": share_of(effect[measured] > top) if controlled.any() else None,
        "share_q_below_0.05": share_of(q[~np.isnan(q)] < 0.05),
        "share_unread": share_of(share[~np.isnan(share)] == 0),
        "ablation_kl_median": median(numbers(counted, "ablation_kl")),
        "ablation_kl_rest_median": median(numbers(counted, "ablation_kl_rest")),
        "delta_ce_median": median(numbers(counted, "delta_ce")),
        "direct_share_median": median(numbers(counted, "direct_share")),
        "acts_at": counts_of(counted, "acts_at"),
        "control": {
            "num_measured": int(controlled.sum()),
            "median": median(control),
            "share_interval_above_zero": share_of(control_low[~np.isnan(control_low)] > 0),
            "share_beyond_random": _beyond(directions),
            "ablation_kl_median": median(numbers(directions, "ablation_kl")),
        },
    }


def steering_block(alive: pd.DataFrame) -> dict[str, Any]:
    """Steering at a stated KL over the latents that were steered, a random sample; promised tokens beside their controls."""
    reached = ~np.isnan(numbers(alive, "steering_kl"))
    effect = numbers(alive, "steering_effect")
    return {
        "num_reached": int(reached.sum()),
        "failures": counts_of(alive, "steering_failure"),
        "kl_median": median(numbers(alive, "steering_kl")),
        "alpha_median": median(numbers(alive, "steering_alpha")),
        "effect_median": median(effect),
        "share_effect_above_zero": share_of(effect[~np.isnan(effect)] > 0),
        "promised_tokens": {
            name: {
                what: median(numbers(alive, f"{name}_{what}"))
                for what in ("auroc", "auroc_control", "recall50", "recall50_control")
            }
            for name in _PROMISED
            if not np.isnan(numbers(alive, f"{name}_auroc")).all()
        },
    }


def causal_notes(summary: Mapping[str, Any]) -> list[Text]:
    """Sentences on ablation, the check of its ranges, steering, substitution and the screen; none where a run has none."""
    lines = [
        _effects(summary["causal"]),
        _left_out(summary.get("left_out")),
        _steering(summary["steering"]),
        *(
            _substituted(name, found)
            for name, found in ((summary.get("substitution") or {}).get("sources", {})).items()
        ),
        *(_screened(name, found) for name, found in (summary.get("attribution") or {}).items()),
        *_label_effects(summary.get("label_effect") or {}),
    ]
    return [line for line in lines if line is not None]


def _effects(causal: Mapping[str, Any]) -> Text | None:
    if causal["median"] is None:
        return None
    control = causal["control"]
    line = Text("Causal effect: ablating the median latent changes the output ")
    line.append(f"{ratio_text(causal['median'])} as much", style="bold")
    line.append(f" as a random push of its size (ln {signed_text(causal['median'])}")
    if control["median"] is not None:
        line.append(f"; random directions {signed_text(control['median'])}")
    line.append("). ")
    if causal["share_beyond_random"] is not None:
        line.append(percent_text(causal["share_beyond_random"]), style="bold")
        line.append(f" of {causal['num_measured']:,} latents do more than 97.5% of such pushes do at the same tokens")
        if control["share_beyond_random"] is not None:
            line.append(f" (random directions: {percent_text(control['share_beyond_random'])})")
        if causal["share_q_below_0.05"] is not None:
            line.append(f", {percent_text(causal['share_q_below_0.05'])} with q < .05")
        line.append(". ")
    line.append(
        f"For {percent_text(causal['share_interval_above_zero'])} the 95% interval, over other windows too, is above 0"
    )
    if control["share_interval_above_zero"] is not None:
        line.append(f" (random directions: {percent_text(control['share_interval_above_zero'])})")
    line.append(".")
    if causal["share_unread"]:
        line.append(f" {percent_text(causal['share_unread'])} are read by nothing above them.")
    return line


def _left_out(check: Mapping[str, Any] | None) -> Text | None:
    if not check:
        return None
    line = Text(
        f"Check: of {check['num_draws']:,} random pushes held out, {percent_text(check['share_covered'])} lie in the range that "
        "should hold 95%"
    )
    if (far := check.get("share_far")) is not None and check["num_draws"] >= _MANY:
        line.append(f", and {100 * far:.2g}% where 0.1% should lie")
    return line.append(".")


def _steering(steering: Mapping[str, Any]) -> Text | None:
    if not steering["num_reached"]:
        return None
    line = Text(f"Steering reached its KL with {steering['num_reached']:,} latents")
    if steering["failures"]:
        line.append(" (" + ", ".join(f"{plain_line(k)} {v:,}" for k, v in steering["failures"].items()) + ")")
    if steering["effect_median"] is not None:
        line.append(f"; random directions needed {ratio_text(steering['effect_median'])} the strength")
    line.append(".")
    promised = steering["promised_tokens"].get("output_tokens")
    if promised is not None:
        line.append(
            f" The tokens that output labels promise rise: AUROC {share_text(promised['auroc'])} (other latents' "
            f"{share_text(promised['auroc_control'])})."
        )
    return line


def _substituted(source: str, found: Mapping[str, Any]) -> Text | None:
    whole, single = found["all_at_once"], found["latents"]
    line = Text()
    kept = (whole or {}).get("recovered", {}).get("substituted")
    if whole and kept and kept["value"] is not None:
        line.append(f"Labels in the latents' place ({source}): all {whole['num_latents']:,} at once keep ")
        line.append(percent_text(kept["value"]), style="bold")
        if kept["low"] is not None and kept["high"] is not None:
            line.append(f" [{percent_text(kept['low'])}, {percent_text(kept['high'])}]")
        elif kept["high"] is not None:  # what is divided by is not known from 0
            line.append(f" (at most {percent_text(kept['high'])}, no lower bound)")
        line.append(" of what they do")
        others = {"shuffled": "shuffled labels", "mean": "means where it fires"}
        beside = [
            f"{words} {percent_text(whole['recovered'][way]['value'])}"
            for way, words in others.items()
            if whole["recovered"].get(way, {}).get("value") is not None
        ]
        line.append(f" ({', '.join(beside)})" if beside else "")
    if single and single["median"] is not None:
        line.append("; " if line else f"Labels in the latents' place ({source}): ")
        line.append(f"one by one the median of {single['num_scored']:,} keeps {percent_text(single['median'])}")
        if single["median_shuffled"] is not None:
            line.append(f" (shuffled {percent_text(single['median_shuffled'])})")
    return line.append(".") if line else None


def _screened(source: str, found: Mapping[str, Any]) -> Text | None:
    if found["spearman"] is None:
        return None
    line = Text(f"The gradient's screen of {source}'s {found['num_screened']:,} latents ranks ")
    line.append(f"{found['num_latents']:,} of them as their ablation does: Spearman {share_text(found['spearman'])} ")
    return line.append(f"{interval_text(found['spearman_low'], found['spearman_high'])}.")


def _label_effects(block: Mapping[str, Any]) -> list[Text]:
    """A line a judge of texts written under steering."""
    lines = []
    for kind in STEERED_KINDS:
        for side, found in block.get(kind, {}).items():
            line = Text(f"Label against effect, {kind} of the {side} label: ")
            if found["median"] is None:
                line.append("no figure")
            else:
                line.append(
                    f"median {signed_text(found['median']) if found['chance'] == 0 else share_text(found['median'])}",
                    "bold",
                )
                line.append(f" of {found['num_defined']:,} latents")
            if found["chance"] is not None:
                line.append(
                    f" (chance {share_text(found['chance'])}; above it {percent_text(found['share_above_chance'])})"
                )
            if found["shuffled_mean"] is not None:
                line.append(f", shuffled labels {share_text(found['shuffled_mean'])}")
            if found["failures"]:
                line.append("; " + ", ".join(f"{plain_line(k)} {v:,}" for k, v in found["failures"].items()))
            lines.append(line.append("."))
    return lines


def standing(alive: pd.DataFrame) -> pd.DataFrame:
    """The rows whose effects stand for the dictionary: all that were ablated, or the random ones where a screen chose others."""
    if "causal_chosen" not in alive.columns or not alive["causal_chosen"].notna().any():
        return alive
    return alive[[stands_for_dictionary({"causal_chosen": chosen}) for chosen in alive["causal_chosen"]]]


def _beyond(rows: pd.DataFrame) -> float | None:
    effect, top = numbers(rows, "causal_effect"), numbers(rows, "causal_random_high")
    known = ~np.isnan(effect) & ~np.isnan(top)
    return share_of(effect[known] > top[known])
