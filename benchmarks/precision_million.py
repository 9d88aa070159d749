"""How long precision, recall and F1 of a million latents take, from verdicts to intervals, on one core.

OMP_NUM_THREADS=1 python benchmarks/precision_million.py [--latents 1000000]
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
from precision_coverage import ROUND_FIRING, ROUND_SILENT, Population, judge, population
from precision_runs import first_round, further_round, noisy_screen, without_near

from autointerp.statistics.natural_rate import JudgeResolution, VerdictCounts, estimate_natural_rates, verdict_counts


def windows_judged(of: Population, rng: np.random.Generator) -> VerdictCounts:
    """20 to 40 firing and 80 to 160 silent windows: two, three or four rounds, and some near strata with fewer than were to be judged."""
    judged, num = judge(of, rng), len(of.pi)
    rounds = rng.integers(2, 5, num)
    done = np.arange(4)[:, None] < rounds
    yes = (judged.yes * done[:, :, None]).sum(axis=0)
    windows = np.maximum(
        (rounds[:, None] * ROUND_SILENT).astype(float) - rng.integers(0, 4, (num, 4)) * [1, 1, 1, 0], yes
    )
    return verdict_counts(
        of.pi, ROUND_FIRING * rounds, (judged.firing_yes * done).sum(axis=0), judged.pool, windows, yes,
        judged.audit_judged, judged.audit_yes,
    )  # fmt: skip


def as_runs_ask(of: Population, rng: np.random.Generator) -> VerdictCounts:
    """Those of a run with its defaults: seven labels in ten get a second round, half of these with windows near the label."""
    num = len(of.pi)
    screen, chance = noisy_screen(num, rng), rng.random(num)
    return further_round(first_round(of, screen, rng), screen, chance < 0.7, chance < 0.35, rng).counts()


def timed(name: str, of: Population, ask_about: Callable[[Population, np.random.Generator], VerdictCounts]) -> None:
    counts = ask_about(of, np.random.default_rng(1))
    before = _peak()
    for attempt in ("first call, compiling included", "again"):
        began, used = time.perf_counter(), time.process_time()
        found = estimate_natural_rates(counts, 0, JudgeResolution(5_000, 1))
        took, used = time.perf_counter() - began, time.process_time() - used
        print(
            f"{len(counts):,} latents, {name}, {attempt}: {took:.0f} s ({used:.0f} s of processor time), "
            f"peak {_peak():,.0f} MiB ({before:,.0f} before)",
            flush=True,
        )
    inside = (found.precision.low <= of.precision) & (of.precision <= found.precision.high)
    print(f"coverage {inside.mean():.3f}, audit {found.audit_covered} of {found.audit_total}", flush=True)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=1_000_000)
    num = parser.parse_args().latents
    of = population("lognormal", num, np.random.default_rng(0))
    timed("40 + 160 windows", of, windows_judged)
    timed("windows as a run asks", without_near(of), as_runs_ask)


if __name__ == "__main__":
    main()
