"""The benchmark of interventions: all ways get the same work, and what they find is really compared."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from autointerp.report.bench import print_causal_bench
from sae_core.bench.causal import Difference, Numbers, PlainWay, Turn, bench_causal, difference, make_work, ours
from sae_core.bench.causal import _random_world as random_world
from sae_core.errors import ConfigError
from tests.cli_process import run_cli


def test_a_rate_is_of_latents_and_their_seconds() -> None:
    turn = Turn({"ours": 60, "window": 2}, {"ours": 10.0, "window": 4.0}, {"ours": 12.0, "window": 4.0})
    assert turn.rate("ours") == 6.0
    assert turn.ratio("window") == 12.0
    assert turn.cpu_ratio("window") == 10.0


def test_differences_are_the_largest_and_never_pass_over_what_is_missing() -> None:
    nan = float("nan")
    plain = Numbers({"a": 1.0, "b": 0.02, "c": 1e-6, "d": nan}, {"e": 2.0, "f": nan})
    same = Numbers(dict(plain.divergences), dict(plain.strengths))
    assert difference(same, plain) == Difference(0.0, 0.0, 0.0, 6)
    found = Numbers({"a": 1.001, "b": 0.021, "c": 3e-6, "d": nan}, {"e": 2.02, "f": nan})
    apart = difference(found, plain)
    assert apart.nats == pytest.approx(1e-3)
    assert apart.relative == pytest.approx(0.05)  # of b; c is below 0.01 nats
    assert apart.strength == pytest.approx(0.01)
    missing = Numbers({k: v for k, v in plain.divergences.items() if k != "a"}, {"e": nan, "f": 1.0})
    apart = difference(missing, plain)
    assert (apart.nats, apart.strength) == (float("inf"), float("inf"))


def test_both_plain_ways_find_our_numbers_and_a_changed_latent_is_seen() -> None:
    subject, coder, contexts = random_world(2, 64, 12)
    work = make_work(subject, coder, contexts, num_latents=3, num_windows=2)
    work = replace(work, steering=replace(work.steering, max_evaluations=6))
    found = ours(work)
    numbers = len(work.ablated) * (2 * 3 + 3) * 5  # windows x kinds of divergence, and fit, score, alpha; 5 directions
    for windows_a_call in (None, 1):
        plain = PlainWay(work, windows_a_call)()
        one = difference(found, plain)
        assert one.compared == numbers
        assert one.nats < 1e-4
        assert one.strength < 1e-4
    longer = replace(coder, decoder_weight=coder.decoder_weight * 1.01)
    off = difference(found, PlainWay(replace(work, coder=longer), None)())
    assert off.nats > 1e-4
    assert off.strength > 1e-3


def test_what_cannot_be_timed_is_said() -> None:
    options = {"layers": 2, "width": 64, "latents": 2, "windows": 2, "contexts": 8, "turns": 1, "plain_latents": 1}
    with pytest.raises(ConfigError, match="together"):
        bench_causal(subject="somewhere", coder=None, **options)  # type: ignore[arg-type]
    subject, coder, contexts = random_world(2, 64, 4)
    with pytest.raises(ConfigError, match="fewer windows"):
        make_work(subject, coder, contexts, num_latents=2, num_windows=50)


def test_the_command_reports_the_ratios_and_the_differences() -> None:
    small = ["--layers", "2", "--width", "64", "--latents", "2", "--windows", "2", "--contexts", "12", "--turns", "1"]
    done = run_cli(["bench", "causal", *small, "--json"])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["hookpoint"] == "layers.0"
    assert set(result["ways"]) == {"batch", "window"}
    for way in result["ways"].values():
        assert way["ratio_lowest"] <= way["ratio"] <= way["ratio_highest"]
        assert way["largest_difference_nats"] < 1e-4
        assert way["numbers_compared"] == (2 * 3 + 3) * 5
    console = Console(file=io.StringIO(), width=200)
    for way in result["ways"].values():
        way |= {"ratio": 12.0, "largest_difference_nats": 3e-6, "meets_target": True}
    print_causal_bench(result, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "12.0x" in shown
    assert "3e-06" in shown
    assert "the target (4x and 10x at numbers equal to 1e-4) is met" in shown
