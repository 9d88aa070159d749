"""A judge that does not answer, in whole runs: it is seen in the summary, the dictionary, at the run's end and by ``show``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autointerp.llm.server import RunningServer
from autointerp.llm.server.faults import FaultRule
from tests import planted_world
from tests.autointerp.test_llm_runs import LABELS, dictionary, oracle, run, write_config
from tests.cli_process import run_cli

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failing-judges")
    planted_world.build(folder)
    return folder


def labelled_by(world: Path, name: str, *faults: FaultRule) -> tuple[Path, str]:
    """The run's folder, and its last words on one line."""
    out = world / name
    with RunningServer(oracle(world), faults=list(faults)) as server:
        done = run(write_config(world, name, server.url, LABELS), out)
    assert done.returncode == 0, done.stderr
    return out, " ".join(done.stdout.replace("│", " ").split())


def show(out: Path, latent: int) -> str:
    done = run_cli(["show", str(out), str(latent)])
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def summary_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def test_a_judge_that_never_answers_is_not_a_run_without_judges(world: Path) -> None:
    out, said = labelled_by(world, "silent", FaultRule("length", containing="Label: "))
    judged = summary_of(out)["judged"]
    assert set(judged) == {"detection", "fuzz"}
    for row in judged.values():
        assert (row["median"], row["num_defined"], row["models"], row["asked_model"]) == (None, 0, [], "test")
        for failed in (row["failed"], row["shuffled"]["failed"], row["random_direction"]["failed"]):
            assert failed["share"] == 1.0
            assert failed["questions"] == {"truncated": failed["num_questions"]}
            assert failed["num_questions"] > 0
            assert failed["scores"]["truncated"] > 0
    table = dictionary(out)
    alive = table[table.status == "labelled"]
    assert set(alive.detection_failure) == {"truncated", "too_few_windows"}
    assert alive.detection_score.isna().all()
    assert alive.judge_model.isna().all()
    assert (alive.num_failed[alive.detection_failure == "truncated"] > 0).all()
    for words in ("Warning: detection has no answer", "Warning: fuzz has no answer", "100% on labels (truncated"):
        assert words in said
    assert "on shuffled labels (truncated" in said
    assert "on random directions (truncated" in said
    shown = show(out, 5)
    assert "holds nowhere" not in shown
    assert "detection has no figure: no window was judged: 2 of 2 calls failed (truncated" in shown
    assert "not judged: truncated" in shown


def test_a_judge_that_fails_at_times_is_counted_by_kind(world: Path) -> None:
    """Some calls fail: the shares are those of the questions that were asked, and of latents that have no figure."""
    out, said = labelled_by(world, "partly", FaultRule("refusal", containing="Label: ", rate=0.3, seed=4))
    judged = summary_of(out)["judged"]
    table = dictionary(out)
    for kind, row in judged.items():
        failed = row["failed"]
        assert set(failed["questions"]) == {"refused"}
        assert 0 < failed["share"] < 1
        assert failed["share"] == pytest.approx(failed["questions"]["refused"] / failed["num_questions"])
        assert failed["num_scores"] == row["num_latents"] == len(table[table.status != "dead"])
        assert row["num_defined"] == table[f"{kind}_score"].notna().sum()
        assert row["num_defined"] + sum(failed["scores"].values()) == row["num_latents"]
        assert row["models"] == ["test"]
    # the dictionary counts the same questions
    questions = sum(row["failed"]["questions"]["refused"] for row in judged.values())
    assert table.num_failed.sum() == questions
    assert "Warning: detection has no answer to part of its questions" in said
    assert "Judge:" not in said


def test_a_judge_that_answers_has_no_warning(world: Path) -> None:
    out, said = labelled_by(world, "whole")
    assert "Warning" not in said
    judged = summary_of(out)["judged"]
    assert all(row["failed"]["share"] == 0 and row["failed"]["questions"] == {} for row in judged.values())
    table = dictionary(out)
    assert table.detection_failure[table.detection_score.notna()].isna().all()
    assert table.detection_failure[3] == "no_explanation"
