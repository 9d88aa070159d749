"""Causal figures in reports: which rows count, what the sentences say, one latent's lines, and the picture's fourth panel."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from autointerp.report.causal import causal_block, causal_notes, steering_block
from autointerp.report.label_effect import label_effect_block
from autointerp.report.latent_effects import effect_lines
from autointerp.report.overview import draw_overview
from autointerp.report.summary import build_summary
from tests.autointerp.report_world import tables

RECORD: dict[str, Any] = {
    "left_out": {"num_draws": 800, "share_covered": 0.955, "share_below": 0.02, "share_above": 0.025},
    "attribution": {
        "c": {"spearman": 0.8, "spearman_low": 0.7, "spearman_high": 0.86, "num_latents": 40, "num_screened": 300}
    },
    "substitution": {
        "sources": {
            "c": {
                "latents": {"median": 0.75, "median_shuffled": -0.4, "num_scored": 48},
                "all_at_once": {
                    "num_latents": 300,
                    "recovered": {
                        "substituted": {"value": 0.9, "low": 0.88, "high": 0.92},
                        "shuffled": {"value": -0.12, "low": None, "high": None},
                        "mean": {"value": 0.96, "low": 0.95, "high": 0.97},
                    },
                },
            }
        }
    },
}


def rows() -> pd.DataFrame:
    """Six latents: two chosen at random, three by the screen, one left out."""
    return pd.DataFrame(
        {
            "causal_chosen": ["random", "random", "screen", "screen", "screen", None],
            "causal_effect": [0.1, 0.3, 5.0, 5.0, 5.0, np.nan],
            "causal_effect_low": [-0.1, 0.1, 4.0, 4.0, 4.0, np.nan],
            "causal_random_high": [0.2, 0.2, 0.2, 0.2, 0.2, np.nan],
            "causal_q": [0.5, 0.01, 0.0, 0.0, 0.0, np.nan],
            "ablation_share": [0.0, 1.0, 1.0, 1.0, 1.0, np.nan],
            "acts_at": ["direct", "h.3", "h.3", "h.3", "h.3", None],
        }
    )


def test_what_the_screen_chose_is_not_the_dictionary() -> None:
    directions = pd.DataFrame(
        {"causal_effect": [0.0, 0.3], "causal_effect_low": [-1.0, -1.0], "causal_random_high": [0.2, 0.2]}
    )
    block = causal_block(rows(), directions)
    assert block["num_measured"] == 2
    assert block["median"] == pytest.approx(0.2)
    assert block["share_beyond_random"] == block["share_interval_above_zero"] == block["share_q_below_0.05"] == 0.5
    assert block["share_unread"] == 0.5
    assert block["acts_at"] == {"direct": 1, "h.3": 1}
    assert block["num_chosen"] == {"screen": 3, "random": 2}
    assert block["control"]["share_beyond_random"] == 0.5


def test_where_all_were_ablated_all_count() -> None:
    table = rows().assign(causal_chosen=["all"] * 5 + [None])
    assert causal_block(table, table[:0])["num_measured"] == 5
    assert causal_block(table.drop(columns="causal_chosen"), table[:0])["num_measured"] == 5


def summary(record: dict[str, Any]) -> dict[str, Any]:
    table, controls = tables()
    table = table.assign(causal_random_high=0.5, output_tokens_auroc=0.9, output_tokens_auroc_control=0.5)
    return build_summary(table, controls, {}, {}, {}, np.random.default_rng(0), resamples=20, causal=record)


def test_the_sentences_say_each_figure_with_its_control() -> None:
    text = "\n".join(line.plain for line in causal_notes(summary(RECORD)))
    assert "do more than 97.5% of such pushes" in text
    assert "of 800 random pushes held out, 96% lie in the range" in text
    assert "AUROC .90 (other latents' .50)" in text
    assert (
        "all 300 at once keep 90% [88%, 92%] of what they do (shuffled labels -12%, means where it fires 96%)" in text
    )
    assert "the median of 48 keeps 75% (shuffled -40%)" in text
    assert "ranks 40 of them as their ablation does: Spearman .80 [.70, .86]" in text


def test_what_a_run_has_not_measured_is_not_said() -> None:
    endless = copy.deepcopy(RECORD)
    kept = endless["substitution"]["sources"]["c"]["all_at_once"]["recovered"]["substituted"]  # type: ignore[index]
    kept["low"] = None
    said = "\n".join(line.plain for line in causal_notes(summary(endless)))
    assert "at once keep 90% (at most 92%, no lower bound) of what they do" in said
    kept["high"] = None
    said = "\n".join(line.plain for line in causal_notes(summary(endless)))
    assert "at once keep 90% of what they do" in said
    empty = {"left_out": None, "attribution": {}, "substitution": None}
    text = "\n".join(line.plain for line in causal_notes(summary(empty)))
    for word in ("held out", "Spearman", "Labels in the latents' place"):
        assert word not in text
    nothing = copy.deepcopy(RECORD)
    nothing["substitution"]["sources"]["c"] = {"latents": None, "all_at_once": None}
    assert "Labels in the latents' place" not in "\n".join(line.plain for line in causal_notes(summary(nothing)))


def test_one_latent_has_its_lines_with_intervals_and_controls() -> None:
    row = pd.Series(
        {
            "causal_effect": 0.4, "causal_effect_low": -0.2, "causal_effect_high": 1.0, "causal_random_low": -0.6,
            "causal_random_high": 0.6, "causal_q": 0.25, "ablation_kl": 0.5, "ablation_kl_typical": 0.2,
            "ablation_kl_typical_low": 0.1, "ablation_kl_typical_high": 0.4, "control_kl_typical": 0.2 / math.exp(0.4),
            "delta_ce": 0.003, "delta_ce_low": 0.002, "delta_ce_high": 0.004, "control_delta_ce": -0.001, "direct_share": 0.1,
            "acts_at": "h.3", "attribution_kl": 0.7, "steering_kl": 0.35, "steering_target": 0.33, "steering_alpha": 2.0,
            "steering_effect": 0.1, "lens_auroc": 0.99, "lens_auroc_control": 0.98, "substitution": 0.75,
            "substitution_low": np.nan, "substitution_high": 0.9, "substitution_shuffled": -0.4,
        }
    )  # fmt: skip
    lines = {line.name: line for line in effect_lines(row)}
    assert lines["causal effect"].bounds == "[-.20, +1.00]"
    assert "[-.60, +.60] = 95% of single ones; q .250" in lines["causal effect"].note
    assert lines["ablation kl"][1:3] == ("0.2", "[0.1, 0.4]")
    assert "random pushes 0.134" in lines["ablation kl"].note
    assert lines["cross-entropy"][1:3] == ("+.003", "[+.002, +.004]")
    assert "most through h.3" in lines["direct share"].note
    assert "not ablated" not in lines["attribution kl"].note
    assert "of 0.33 asked" in lines["steering kl"].note
    assert "control .98" in lines["logit lens tokens"].note
    assert lines["substitution"][1:3] == (".75", "")
    assert "another label's -.40" in lines["substitution"].note


def test_a_latent_that_was_only_screened_says_so() -> None:
    (line,) = effect_lines(pd.Series({"attribution_kl": 0.7, "causal_effect": np.nan}))
    assert "not ablated" in line.note
    (line,) = effect_lines(pd.Series({"steering_failure": "unreachable"}))
    assert (line.name, line.note) == ("steering", "unreachable")


def test_the_picture_has_a_fourth_panel_where_labels_were_put_in_place(tmp_path: Path) -> None:
    table, controls = tables()
    for name, record in (("with", RECORD), ("without", {})):
        draw_overview(table, summary(record), tmp_path / f"{name}.png", controls)
    with_it, without = (imread(tmp_path / f"{name}.png") for name in ("with", "without"))
    assert with_it.shape[1] == 2400
    assert without.shape[1] == 1800
    panel = with_it[100:540, int(2400 * 12.95 / 16) :, :3]
    assert (np.abs(panel - panel[0, 0]).max(axis=-1) > 0.1).mean() > 0.05  # bars, not an empty frame


def test_promised_tokens_are_left_out_where_nobody_promised() -> None:
    assert steering_block(pd.DataFrame({"steering_kl": [0.1]}))["promised_tokens"] == {}


def test_labels_against_effect_are_counted_by_rank_where_others_were_asked_about() -> None:
    alive = pd.DataFrame(
        {
            # an interval above 0 that other labels have as well, one that they have not, an undefined one
            "steered_surprisal_score": [0.4, 0.5, np.nan],
            "steered_surprisal_low": [0.2, 0.3, np.nan],
            "steered_surprisal_above": [0.9, 1.0, np.nan],
            "steered_surprisal_failure": [None, None, "collapsed"],
            "steered_choice_score": [0.9, 0.4, 0.2],
            "steered_choice_low": [0.7, 0.2, 0.1],
        }
    )
    controls = pd.DataFrame({"kind": ["shuffled", "null_nothing"], "steered_choice_score": [0.3, 0.9]})
    block = label_effect_block(alive, controls)
    assert block["steered_surprisal"]["input"]["share_above_chance"] == pytest.approx(1 / 3)
    assert block["steered_surprisal"]["input"]["num_defined"] == 2
    assert block["steered_surprisal"]["input"]["failures"] == {"collapsed": 1}
    assert block["steered_choice"]["input"]["share_above_chance"] == pytest.approx(1 / 3)
    assert block["steered_choice"]["input"]["shuffled_mean"] == pytest.approx(0.3)
    lines = "\n".join(line.plain for line in causal_notes({**summary({}), "label_effect": block}))
    assert (
        "steered_choice of the input label: median .40 of 3 latents (chance .33; above it 33%), shuffled labels .30."
        in lines
    )


def test_a_screen_may_not_change_the_pictures_causal_panel(tmp_path: Path) -> None:
    table, controls = tables()
    chosen = np.where(np.arange(len(table)) % 2 == 0, "random", "screen")
    half = table.assign(causal_chosen=chosen)
    moved = half.assign(causal_effect=half.causal_effect.where(half.causal_chosen == "random", 9.0))
    pictures = []
    for name, one in (("a", half), ("b", moved)):
        built = build_summary(one, controls, {}, {}, {}, np.random.default_rng(0), resamples=20)
        draw_overview(one, built, tmp_path / f"{name}.png", controls)
        pictures.append(imread(tmp_path / f"{name}.png"))
    assert (pictures[0] == pictures[1]).all()
