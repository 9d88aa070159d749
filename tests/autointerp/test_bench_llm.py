"""The benchmark of the way to a server: its arithmetic on known numbers, and one tiny real run."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from autointerp.llm.bench import Round, bench_llm, summary
from autointerp.llm.bench_arms import ANSWER, ARMS, MAX_TOKENS, Prompts
from autointerp.report.bench import print_llm_bench
from sae_core.errors import ConfigError


def test_shares_and_ratios_by_hand() -> None:
    rounds = {
        # 10 at once, 0.1 s: at most 100 calls a second
        "autointerp": [Round(100, 1.25, 0.2), Round(100, 1.0, 0.3), Round(100, 2.0, 0.1)],
        "openai": [Round(100, 1.0, 0.1), Round(100, 1.0, 0.3), Round(100, 1.0, 0.2)],
        "aiohttp": [Round(100, 1.0, 0.05), Round(100, 1.0, 0.05), Round(100, 1.0, 0.05)],
    }
    found = summary(rounds, concurrency=10, latency_s=0.1)
    assert found["most_calls_per_second"] == pytest.approx(100)
    ours = found["ways"][0]
    # 80, 100 and 50 calls a second; 2, 3 and 1 ms; 0.16, 0.3 and 0.05 cores
    assert ours["way"] == "autointerp"
    assert ours["calls"] == 300
    assert ours["calls_per_second"] == pytest.approx(80)
    assert found["share"] == ours["share"] == pytest.approx(0.8)
    assert (ours["cpu_ms_per_call"], ours["cpu_ms_lowest"], ours["cpu_ms_highest"]) == pytest.approx((2, 1, 3))
    assert ours["cores"] == pytest.approx(0.16)
    # turn by turn: 2, 1 and 0.5 of openai's; 4, 6 and 2 of aiohttp's
    assert found["cpu_ratio"] == pytest.approx(1.0)
    assert found["cpu_ratios"] == {"openai": pytest.approx(1.0), "aiohttp": pytest.approx(4.0)}
    assert found["meets_target"]


@pytest.mark.parametrize(
    ("seconds", "cpu_s", "meets"),
    [(1.1, 0.9, True), (1.2, 0.9, False), (1.2, 0.25, True), (1.0, 0.27, True), (1.12, 0.27, False)],
)
def test_the_target_is_the_rate_or_the_cpu(seconds: float, cpu_s: float, meets: bool) -> None:
    rounds = {"autointerp": [Round(100, seconds, cpu_s)], "openai": [Round(100, 1.0, 0.2)]}
    assert summary(rounds, concurrency=10, latency_s=0.1)["meets_target"] is meets


@pytest.mark.parametrize(("concurrency", "latency_ms", "calls"), [(0, 100.0, 100), (8, 0.0, 100), (64, 100.0, 100)])
def test_numbers_that_measure_nothing_are_refused(concurrency: int, latency_ms: float, calls: int) -> None:
    with pytest.raises(ConfigError, match="measure nothing"):
        bench_llm(concurrency, latency_ms, calls)


def test_prompts_are_realistic_and_all_different() -> None:
    prompts = Prompts("some way")
    bodies = [prompts.body(number) for number in range(3000)]
    assert len({json.dumps(body) for body in bodies}) == 3000
    sizes = {sum(len(message["content"].encode()) for message in body["messages"]) for body in bodies}
    assert sizes == {5000}
    assert json.loads(ANSWER)["label"]
    assert 55 < len(ANSWER) / 4 < 70 < MAX_TOKENS


def test_a_tiny_real_run() -> None:
    told: list[str] = []
    result = bench_llm(concurrency=4, latency_ms=20.0, calls=16, rounds=2, tell=told.append)
    assert [way["way"] for way in result["ways"]] == list(ARMS)
    assert len(told) == 2 * len(ARMS)
    for way in result["ways"]:
        assert way["calls"] == 16
        assert 0 < way["share"] <= 1.0
        assert 0 < way["cpu_ms_lowest"] <= way["cpu_ms_per_call"] <= way["cpu_ms_highest"] < 200
    # 16 calls and two turns of 4 to warm up, in the ledger with the server's own counts
    entered = result["ledger"]
    assert (entered["calls"], entered["lost"]) == (24, 0)
    rendered = "<|system|>\n" + "\n<|user|>\n" + "\n<|assistant|>\n"
    assert entered["input_tokens"] == 24 * -(-(5000 + len(rendered)) // 4)
    assert entered["output_tokens"] == 24 * -(-len(ANSWER) // 4)
    assert entered["cost_usd"] == pytest.approx((entered["input_tokens"] * 0.1 + entered["output_tokens"] * 0.4) / 1e6)
    shown = io.StringIO()
    print_llm_bench(result, Console(file=shown, width=200))
    assert "bare openai client" in shown.getvalue()
    assert "the target is" in shown.getvalue()
