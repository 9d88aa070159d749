"""Runs that take over another run's exemplars: nothing is extracted, and the figures are those of the run itself."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pandas as pd
import pytest

from autointerp.llm.server import RunningServer
from tests import planted_world
from tests.autointerp.test_llm_runs import CONFIG, KEY, dictionary, environment, oracle, run
from tests.cli_process import run_cli

SCORERS = """
[precision]
screen_windows = 50
[[scorers]]
kind = "detection"
"""
FIGURES = ["status", "label", "detection_score", "precision", "recall", "fire_rate"]
FIGURES += ["neighbours", "top_promoted_tokens", "corpus_fingerprint", "coder_fingerprint", "num_judged"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reusing-world")
    planted_world.build(folder)
    return folder


@pytest.fixture(scope="module")
def base(world: Path) -> Path:
    out = world / "base"
    with RunningServer(oracle(world)) as server:
        done = run(config_of(world, "base", server.url, '[[explainers]]\nkind = "max_activating"\n'), out)
    assert done.returncode == 0, done.stderr
    return out


def config_of(world: Path, name: str, url: str, more: str, **changes: str) -> Path:
    text = CONFIG.replace("URL", url) + SCORERS + more
    for before, after in changes.items():
        text = text.replace(f"{before} = ", f"{before} = {after} # ")
    path = world / f"{name}.toml"
    path.write_text(text)
    return path


def reusing(base: Path) -> str:
    return f'[labels]\nfrom = "{base}"\n'


def stages_of(out: Path) -> set[str]:
    with sqlite3.connect(out / "autointerp.db") as connection:
        return {stage for (stage,) in connection.execute("SELECT DISTINCT stage FROM chunk")}


def again(world: Path, base: Path, name: str, url: str, **changes: str) -> Path:
    path = config_of(world, name, url, reusing(base), **changes)
    path.write_text(path.read_text().replace("[extraction]\n", f'[extraction]\nreuse = "{base}"\n'))
    return path


def test_a_run_over_the_same_labels_has_the_same_figures_and_needs_no_subject(world: Path, base: Path) -> None:
    (world / "subject").rename(world / "subject-away")
    (world / "subject").mkdir()  # whoever would load it fails
    try:
        with RunningServer(oracle(world)) as server:
            out = world / "again"
            done = run(again(world, base, "again", server.url), out)
            assert done.returncode == 0, done.stderr
    finally:
        (world / "subject").rmdir()
        (world / "subject-away").rename(world / "subject")
    assert not stages_of(out) & {"tokenize", "directions", "extract", "merge", "lens"}
    assert not (out / "corpus").exists()
    assert not list(out.rglob("exemplars"))
    pd.testing.assert_frame_equal(dictionary(out)[FIGURES], dictionary(base)[FIGURES])
    assert dictionary(out).detection_score.notna().sum() > 10
    summary, before = (json.loads((folder / "summary.json").read_text()) for folder in (out, base))
    assert summary["run"]["corpus"] == before["run"]["corpus"]
    shown = run_cli(["show", str(out), "5"], environment())
    assert shown.returncode == 0, shown.stderr
    assert "def" in shown.stdout  # where it fires


def test_another_run_of_the_same_exemplars_is_told_apart_by_the_base(world: Path, base: Path) -> None:
    from autointerp.config import load_config

    path = again(world, base, "moved", "http://127.0.0.1:1/v1")
    here = load_config(path).digest
    moved = world / "elsewhere"
    base.rename(moved)
    try:
        there = again(world, moved, "moved", "http://127.0.0.1:1/v1")
        config = load_config(there)
        labels = config.labels.model_copy(update={"from_": str(base)})
        same = config.model_copy(update={"labels": labels, "explainers": (labels.imported,)})
        assert same.extraction.reuse == str(moved)
        from autointerp.components import parse_component

        explainer = parse_component("explainers", labels.imported or {}).model_dump(mode="json")
        assert same.model_copy(update={"explainers": (explainer,)}).digest == here
    finally:
        moved.rename(base)
    plain = world / "plain.toml"
    plain.write_text(path.read_text().replace("reuse = ", "# "))
    assert load_config(plain).digest != here
    assert "reuse" not in load_config(plain).identity()["extraction"]  # older runs keep their identity


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_tokens", "14000", "extraction.num_tokens was 15000, is 14000"),
        ("window_length", "8", "extraction.window_length was 16, is 8"),
        ("random_directions", "3", "controls.random_directions was 4, is 3"),
        ("name", '"other"', "has no source 'other'; it has 'planted'"),
        ("reuse", '"nowhere"', "which is no output folder of a run"),
    ],
)
def test_other_settings_are_refused(world: Path, base: Path, key: str, value: str, said: str) -> None:
    path = again(world, base, f"refused-{key}", "http://127.0.0.1:1/v1")
    path.write_text(path.read_text().replace(f"\n{key} = ", f"\n{key} = {value} # ", 1))
    done = run(path, world / f"refused-{key}")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (world / f"refused-{key}").exists()


def test_a_refused_start_leaves_the_base_as_it_is(world: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is undone removes its own files, and nothing of the run whose exemplars it reads."""
    from autointerp.config import load_config
    from autointerp.pipeline.starting import start_run

    monkeypatch.setenv("PLANTED_KEY", KEY)
    before = sorted(path.relative_to(base) for path in (base / "corpus").rglob("*"))
    with RunningServer(oracle(world)) as server:
        started = start_run(load_config(again(world, base, "undone", server.url), (), environment()), "x", world / "u")
    started.undo_if_nothing_done()
    assert not (world / "u").exists()
    assert before
    assert sorted(path.relative_to(base) for path in (base / "corpus").rglob("*")) == before


@pytest.mark.long
def test_latents_by_source(world: Path, base: Path) -> None:
    with RunningServer(oracle(world)) as server:
        path = again(world, base, "some", server.url)
        path.write_text("latents = { planted = [5, 1] }\n" + path.read_text())
        done = run(path, world / "some")
        assert done.returncode == 0, done.stderr
        path.write_text(path.read_text().replace("planted = [5, 1]", "other = [1]"))
        refused = run(path, world / "other-source")
    assert list(dictionary(world / "some").index) == [1, 5]
    assert refused.returncode == 2
    assert "latents is a table without 'planted'" in refused.stderr
