"""Intervals of precision hold the truth, and the test would see it if they did not: a short benchmarks/precision_coverage.py."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytestmark = pytest.mark.long

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(SCRIPTS)
        return importlib.import_module("precision_coverage")


@pytest.mark.parametrize(
    ("kind", "arm"),
    [
        ("lognormal", "on"),
        ("bimodal", "on"),
        ("over_broad", "on"),
        ("rising", "on"),
        ("falling", "on"),
        ("shared_factor", "on"),
        ("bimodal", "off"),
        ("rising", "off"),
    ],
)
def test_intervals_hold_in_every_population_with_and_without_stopping(
    simulation: ModuleType, kind: str, arm: str
) -> None:
    found = simulation.summary([simulation.one(kind, 600, 100, (arm,))], arm)
    assert 0.91 <= found["overall"] <= 0.995, found
    assert min(found["decade"], found["quarter"]) >= 0.85, found
    assert found["vs_plain"] <= 1 / 3, found
    assert found["vs_flat"] <= 0.8, found
    assert found["vs_flat_width"] <= 2 / 3, found
    assert found["recall"] >= 0.92, found


@pytest.mark.parametrize("kind", ["over_broad", "rising"])
def test_intervals_hold_with_the_windows_that_a_run_asks_about(simulation: ModuleType, kind: str) -> None:
    run = simulation.one_as_runs(kind, 600, 7)
    for arm in ("runs_1", "runs_2"):
        found = simulation.summary([run], arm)
        assert 0.92 <= found["overall"] <= 0.995, found
        assert min(found["decade"], found["quarter"], found["round"]) >= 0.86, found
        assert found["as_many_plain"] <= 1 / 3, found
        assert found["as_many_flat"] <= 0.8, found
    assert 1.4 < found["rounds"] < 2


def test_the_simulated_run_asks_what_a_run_asks(simulation: ModuleType) -> None:
    """Windows that are counted as judged are of those that were shown; a further round changes nothing for labels that do not get it."""
    runs = importlib.import_module("precision_runs")
    rng = np.random.default_rng(0)
    of = runs.without_near(simulation.population("over_broad", 200, rng))
    screen = runs.noisy_screen(200, rng)
    before = runs.first_round(of, screen, rng)
    wide, unsure = rng.random(200) < 0.7, rng.random(200) < 0.5
    after = runs.further_round(before, screen, wide, unsure, rng)
    one, two = before.counts(), after.counts()
    verified = runs.SETTINGS.verified
    assert np.all(one.firing_judged == 20)
    assert np.all(one.judged[:, :3] == [5, 5, 0])
    # detection's 10 bulk windows are flagged or not; those among them that are flagged are verified with others
    audited = one.audit_judged > 0
    assert audited.sum() == 60
    assert np.all(one.judged[:, 3] <= 10)
    assert np.all(one.screen.verified == np.minimum(one.screen.flagged, verified))  # the audit verifies none
    assert np.all(one.screen.flagged + one.judged[:, 3] <= one.screen.screened)
    more = {name: getattr(two.screen, name) - getattr(one.screen, name) for name in ("screened", "flagged", "verified")}
    assert np.all(np.where(wide, (more["screened"] > 300) & (more["screened"] <= 500), more["screened"] == 0))
    assert np.all(more["verified"] == np.minimum(more["flagged"], verified))
    judged = (two.judged - one.judged).sum(axis=1) + more["verified"]
    near = two.judged[:, :2] - one.judged[:, :2]
    assert np.all(judged[wide & unsure] == 25)  # one call
    assert np.all(np.abs(near[:, 0] - near[:, 1]) <= 1)
    assert np.all(near[~(wide & unsure)] == 0)
    few = wide & ~unsure
    assert np.all(judged[few] == np.where(more["flagged"][few] > 0, 5 + more["verified"][few], 0))
    assert np.all(judged[~wide] == 0)


def test_fifty_latents_hold_or_say_that_they_do_not(simulation: ModuleType) -> None:
    runs = [simulation.one("bimodal", 50, seed, ("on",), baseline=False) for seed in range(6)]
    found = simulation.summary(runs, "on")
    assert found["overall"] >= 0.9 or found["unresolved_share"] > 0.5


@pytest.mark.parametrize(
    ("broken", "kind", "num", "audited"), [("flat", "falling", 300, 60), ("plug_in", "lognormal", 60, 0)]
)
def test_a_broken_prior_is_seen(
    simulation: ModuleType, monkeypatch: pytest.MonkeyPatch, broken: str, kind: str, num: int, audited: int
) -> None:
    """A flat prior fails everywhere; one that is fitted and plugged in collapses in small runs without audit windows."""
    monkeypatch.setattr(simulation, "AUDIT_LATENTS", audited)
    covered: dict[str, list[float]] = {"on": [], f"{broken}_on": []}
    for seed in range(4):
        run = simulation.one(kind, num, seed, tuple(covered), baseline=False)
        for arm, found in covered.items():
            found.append(float(simulation.inside(run, arm).mean()))
    assert min(covered["on"]) >= 0.85, covered
    assert np.mean(covered["on"]) >= 0.92, covered
    assert np.mean(covered[f"{broken}_on"]) < 0.9, covered  # the test above would fail
