"""Times our way to a server beside bare clients: calls a second against what concurrency and latency allow, and CPU a call.

The server answers everything after a fixed time, in a process of its own; each way is a process too, so that the CPU it takes is
its own, and they take turns, so that a machine that slows down favours none.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from autointerp.llm.bench_arms import ANSWER, ARMS, SYSTEM_BYTES, USER_BYTES
from sae_core.errors import ConfigError

SHARE_WANTED, CPU_RATIO_WANTED = 0.9, 1.3
"""Our way must reach this share of concurrency / latency, or, where the CPU is the limit, take at most so much of the bare client's CPU."""
OURS, BARE = "autointerp", "openai"


class Round(NamedTuple):
    """One turn of one way."""

    calls: int
    seconds: float
    cpu_s: float
    """Of the client's process, all threads."""


def summary(rounds: Mapping[str, Sequence[Round]], concurrency: int, latency_s: float) -> dict[str, Any]:
    """What the turns come to; ratios are taken within a turn, and the median of them is given.

    ``share`` is calls a second over concurrency / latency, the most that any client can reach.
    """
    most = concurrency / latency_s
    ways: list[dict[str, Any]] = []
    for name, turns in rounds.items():
        per_second = [turn.calls / turn.seconds for turn in turns]
        cpu_ms = [1000 * turn.cpu_s / turn.calls for turn in turns]
        ways.append(
            {
                "way": name,
                "calls": sum(turn.calls for turn in turns),
                "calls_per_second": statistics.median(per_second),
                "share": statistics.median(per_second) / most,
                "cpu_ms_per_call": statistics.median(cpu_ms),
                "cpu_ms_lowest": min(cpu_ms),
                "cpu_ms_highest": max(cpu_ms),
                "cores": statistics.median(turn.cpu_s / turn.seconds for turn in turns),
            }
        )
    share: float = next(way["share"] for way in ways if way["way"] == OURS)
    ratios = {
        name: statistics.median(
            (ours.cpu_s / ours.calls) / (other.cpu_s / other.calls)
            for ours, other in zip(rounds[OURS], turns, strict=True)
        )
        for name, turns in rounds.items()
        if name != OURS
    }
    return {
        "most_calls_per_second": most,
        "ways": ways,
        "share": share,
        "cpu_ratios": ratios,
        "cpu_ratio": ratios[BARE],
        "meets_target": share >= SHARE_WANTED or ratios[BARE] <= CPU_RATIO_WANTED,
    }


def bench_llm(
    concurrency: int = 64,
    latency_ms: float = 100.0,
    calls: int = 4000,
    rounds: int = 4,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure ``calls`` calls of each way in ``rounds`` turns. Errors: ConfigError for numbers that measure nothing."""
    if min(concurrency, rounds) < 1 or latency_ms <= 0 or calls < concurrency * rounds:
        raise ConfigError(
            f"{calls} calls in {rounds} turns, {concurrency} at once with {latency_ms:g} ms each, measure nothing: "
            f"give a latency above 0 and at least concurrency x {rounds} calls"
        )
    # a whole number of waves, so that no turn ends with idle places
    per_round = round(calls / rounds / concurrency) * concurrency
    found: dict[str, list[Round]] = {name: [] for name in ARMS}
    with ExitStack() as stack:
        server = stack.enter_context(
            _process(["autointerp.llm.server", "--latency-ms", str(latency_ms), "--answer", ANSWER])
        )
        url = _line_of(server).strip()
        clients = {
            name: stack.enter_context(_process(["autointerp.llm.bench_arms", name, url, str(concurrency)]))
            for name in ARMS
        }
        for turn in range(rounds):
            # who goes first changes
            order = list(ARMS)[turn % len(ARMS) :] + list(ARMS)[: turn % len(ARMS)]
            for name in order:
                tell(f"turn {turn + 1} of {rounds}: {name}")
                found[name].append(_turn(clients[name], per_round))
        used = psutil.Process(server.pid).cpu_times()
        entered = _last_line(clients[OURS])
    made = sum(turn.calls + concurrency for turns in found.values() for turn in turns)
    return {
        "machine": machine(),
        "concurrency": concurrency,
        "latency_ms": latency_ms,
        "rounds": rounds,
        "prompt_bytes": SYSTEM_BYTES + USER_BYTES,
        "answer_bytes": len(ANSWER),
        **summary(found, concurrency, latency_ms / 1000),
        "server_cpu_ms_per_call": 1000 * (used.user + used.system) / made,
        "ledger": entered,
    }


def machine() -> str:
    """Cores and processor of this machine."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{os.cpu_count()} cores, {name}, Python {platform.python_version()}"


@contextmanager
def _process(module: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A module of ours as a process that ends with the block."""
    with subprocess.Popen(
        [sys.executable, "-m", *module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def _line_of(child: subprocess.Popen[str]) -> str:
    """The next line that a process prints. Errors: RuntimeError where it has ended; what it had to say stands on stderr."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"a process of the benchmark ended with {child.wait()}: {child.args!r}")
    return line


def _turn(child: subprocess.Popen[str], calls: int) -> Round:
    assert child.stdin is not None
    child.stdin.write(f"{calls}\n")
    child.stdin.flush()
    return Round(**json.loads(_line_of(child)))


def _last_line(child: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process prints once its input has ended."""
    assert child.stdin is not None
    child.stdin.close()
    value: dict[str, Any] = json.loads(_line_of(child))
    child.wait()
    return value
