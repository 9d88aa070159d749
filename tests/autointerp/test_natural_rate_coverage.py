"""Intervals of precision hold the truth, and the test would see it if they did not: a short benchmarks/precision_coverage.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "precision_coverage.py"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("precision_coverage", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


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
