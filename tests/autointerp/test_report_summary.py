"""summary.json against figures computed by hand from the same tables."""

from __future__ import annotations

import json
import statistics
from typing import Any

import numpy as np
import pandas as pd
import pytest

from autointerp.report.figures import interval_text, percent_text, share_text, signed_text, size_text
from autointerp.report.summary import build_summary, summary_json
from tests.autointerp.report_world import tables


def _summary(table: pd.DataFrame, controls: pd.DataFrame) -> dict[str, Any]:
    timings = {"extract": 2.5, "score": 1.0}
    files = {"dictionary": "dictionary"}
    return build_summary(table, controls, {"run_id": "r1"}, timings, files, np.random.default_rng(0), resamples=300)


def _row(latent: int, status: str = "labelled", **values: Any) -> dict[str, Any]:
    return {"source": "s", "latent": latent, "status": status, "label": None, **values}


def test_latents_without_a_figure_count_as_zero() -> None:
    table = pd.DataFrame(
        [
            _row(0, f1=0.9, precision=0.8, recall=1.0, label="a"),
            _row(1, f1=0.5, precision=0.5, recall=0.5, label="b"),
            _row(2, f1=0.0, precision=None, recall=0.0, label="b"),
            _row(3, "rare"),
            _row(4, "failed", failure="timeout"),
            _row(5, "dead"),
        ]
    )
    got = _summary(table, pd.DataFrame())
    assert got["latents"] == {
        "total": 6, "labelled": 3, "dead": 1, "rare": 1, "failed": 1, "alive": 5, "failures": {"timeout": 1},
    }  # fmt: skip
    assert got["scores"]["all"]["f1"]["median"] == statistics.median([0.9, 0.5, 0, 0, 0, 0])
    assert got["scores"]["alive"]["f1"]["median"] == statistics.median([0.9, 0.5, 0, 0, 0])
    assert got["scores"]["labelled"]["f1"]["median"] == 0.5
    assert got["scores"]["labelled"]["precision"]["num_defined"] == 2
    assert got["labels"] == {
        "distinct": 2, "most_common": "b", "largest_share": 2 / 3, "sides": {}, "holding_nowhere": 1
    }  # fmt: skip


def test_differences_are_paired_by_latent() -> None:
    table = pd.DataFrame(
        [
            _row(index, f1=f1, token_rule_f1=rule)
            for index, (f1, rule) in enumerate([(0.9, 0.8), (0.6, 0.5), (0.4, 0.1)])
        ]
        + [_row(3, "rare"), _row(4, "dead")]
    )
    shuffled = pd.DataFrame([{"kind": "shuffled", "latent": latent, "f1": 0.1 * latent} for latent in (2, 0)])
    compared = _summary(table, shuffled)["comparisons"]
    assert compared["label_minus_token_rule_f1"]["alive"]["mean"] == pytest.approx((0.1 + 0.1 + 0.3 + 0) / 4)
    assert compared["label_minus_token_rule_f1"]["alive"]["num_pairs"] == 4
    hard = compared["label_minus_token_rule_f1"]["token_rule_below_0.7"]
    assert hard["mean"] == pytest.approx((0.1 + 0.3 + 0) / 3)
    assert compared["label_minus_shuffled_f1"]["alive"]["mean"] == pytest.approx(((0.4 - 0.2) + 0.9) / 2)
    assert compared["label_minus_shuffled_f1"]["token_rule_below_0.7"]["mean"] == pytest.approx(0.4 - 0.2)
    assert compared["label_minus_shuffled_f1"]["only_labelled"] is True


def test_a_clear_difference_has_its_interval_above_zero() -> None:
    got = _summary(*tables())["comparisons"]
    for difference in (*got["label_minus_token_rule_f1"].values(), got["label_minus_shuffled_f1"]["alive"]):
        assert 0 < difference["low"] < difference["mean"] < difference["high"]


def test_causal_figures_and_floors() -> None:
    table, controls = tables()
    got = _summary(table, controls)
    labelled = table[table.status == "labelled"]
    random = controls[controls.kind == "random_direction"]
    assert got["causal"]["num_measured"] == len(labelled)
    assert got["causal"]["median"] == pytest.approx(labelled.causal_effect.median())
    assert got["causal"]["share_interval_above_zero"] == pytest.approx((labelled.causal_effect_low > 0).mean())
    above = (labelled.causal_effect > random.causal_effect.quantile(0.95)).mean()
    assert got["causal"]["share_above_95_percent_of_controls"] == pytest.approx(above)
    assert got["causal"]["control"]["median"] == pytest.approx(random.causal_effect.median())
    assert got["steering"]["num_reached"] == table.steering_kl.notna().sum()
    assert got["steering"]["failures"] == {"unreachable": int(table.steering_failure.notna().sum())}
    assert got["floors"]["random_direction"]["f1"] == pytest.approx(random.f1.median())
    assert got["floors"]["null_nothing"]["precision"] == 0
    assert got["floors"]["shuffled"]["balanced_accuracy_alert"] is False
    assert got["coders"] == {"demo": "ab" * 32}
    assert got["corpus"]["num_tokens"] == 500_000
    assert got["total_s"] == 3.5


def test_shuffled_labels_that_know_too_much_raise_the_alert() -> None:
    table, controls = tables(60)
    controls.loc[controls.kind == "shuffled", "balanced_accuracy"] = 0.6
    assert _summary(table, controls)["floors"]["shuffled"]["balanced_accuracy_alert"] is True


def _judging(latent: int, arm: str = "labels", **values: Any) -> dict[str, Any]:
    record = {"source": "s", "arm": arm, "scorer": "detection", "latent": latent, "failure": None, "judged": 40}
    return {**record, "failed": 0, "failures": {}, "models": ["m"], "asked_model": "m", **values}


def test_a_judge_without_a_figure_stands_beside_what_failed() -> None:
    table = pd.DataFrame([_row(n, detection_score=None, fuzz_score=0.8 if n else None) for n in range(3)])
    lost = {"judged": 0, "failed": 40, "models": [], "failure": "truncated", "failures": {"truncated": 40}}
    partly = {"judged": 10, "failed": 30, "failures": {"timeout": 10, "refused": 20}, "models": ["n", "m"]}
    judgings = [_judging(0, **lost), _judging(1, **lost), _judging(2, failure="too_few_windows", judged=0, models=[])]
    judgings += [_judging(0, "shuffled"), _judging(1, "shuffled", **partly)]
    judgings += [_judging(n, scorer="fuzz") for n in range(3)]
    controls = pd.DataFrame([{"kind": "shuffled", "latent": 0, "detection_score": 0.5, "source": "s"}])
    judged = build_summary(table, controls, {}, {}, {}, np.random.default_rng(0), 10, judgings=pd.DataFrame(judgings))[
        "judged"
    ]
    assert list(judged) == ["detection", "fuzz"]
    detection = judged["detection"]
    assert (detection["median"], detection["num_defined"], detection["num_latents"]) == (None, 0, 3)
    assert detection["failed"] == {
        "scores": {"truncated": 2, "too_few_windows": 1},
        "num_scores": 3,
        "questions": {"truncated": 80},
        "num_questions": 80,
        "share": 1.0,
    }
    assert detection["shuffled"]["failed"] == {
        "scores": {},
        "num_scores": 2,
        "questions": {"refused": 20, "timeout": 10},
        "num_questions": 80,
        "share": 30 / 80,
    }
    assert detection["shuffled"]["median"] == 0.5
    assert detection["random_direction"]["failed"]["share"] is None
    assert (detection["models"], detection["asked_model"]) == (["m", "n"], "m")
    # a latent without a figure counts as 0 as long as another one has one
    assert judged["fuzz"]["median"] == 0.8
    assert judged["fuzz"]["failed"]["share"] == 0.0
    # without records a judge of the dictionary is there all the same
    bare = _summary(table, pd.DataFrame())["judged"]["detection"]
    assert (bare["failed"]["num_scores"], bare["models"], bare["asked_model"]) == (0, [], None)


def test_each_of_several_sources_has_its_figures() -> None:
    table, controls = tables(60)
    other = table.assign(source="other", f1=np.nan)
    both = pd.concat([controls.assign(source="demo"), controls.assign(source="other")])
    assert (controls.kind == "random_direction").sum() == 64
    got = _summary(pd.concat([table, other], ignore_index=True), both)
    assert set(got["sources"]) == {"demo", "other"}
    assert got["sources"]["demo"]["scores"] == _summary(table, controls)["scores"]
    assert got["sources"]["other"]["scores"]["alive"]["f1"]["median"] == 0
    assert got["sources"]["demo"]["floors"]["random_direction"]["num_latents"] == 64, "its own directions alone"
    shuffled = got["comparisons"]["label_minus_shuffled_f1"]["alive"]
    assert (
        shuffled["num_pairs"]
        == 2 * got["sources"]["demo"]["comparisons"]["label_minus_shuffled_f1"]["alive"]["num_pairs"]
    )


def test_it_is_json_whatever_is_missing() -> None:
    empty = pd.DataFrame({"source": [], "latent": [], "status": []})
    dead = pd.DataFrame([_row(0, "dead")])
    for table in (empty, dead, tables(5)[0]):
        text = summary_json(_summary(table, pd.DataFrame()))
        assert "NaN" not in text
        assert json.loads(text)["latents"]["total"] == len(table)
    assert json.loads(summary_json(_summary(*tables())))["run"] == {"run_id": "r1"}


def test_the_same_seed_gives_the_same_summary() -> None:
    assert _summary(*tables(80)) == _summary(*tables(80))


def test_figures_are_written_as_people_read_them() -> None:
    assert [share_text(v) for v in (0.714, 1.0, 0.0, -0.004, 0.999, None, float("nan"))] == [
        ".71", "1.00", ".00", ".00", "1.00", "–", "–",
    ]  # fmt: skip
    assert [signed_text(v) for v in (0.714, -1.2, 0.0, None)] == ["+.71", "-1.20", ".00", "–"]
    assert [percent_text(v) for v in (0.0, 0.001, 0.5, 0.999, 1.0)] == ["0%", "<1%", "50%", ">99%", "100%"]
    assert interval_text(0.1, 0.25) == "[.10, .25]"
    assert interval_text(None, 0.25) == ""
    assert [size_text(v) for v in (512, 2048, 500_000, 4_100_000, 2e9)] == ["512", "2,048", "500k", "4.1M", "2B"]
