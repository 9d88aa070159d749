"""How long precision, recall and F1 of a million latents take, from verdicts to intervals, on one core.

OMP_NUM_THREADS=1 python benchmarks/precision_million.py [--latents 1000000]
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
from precision_coverage import ROUND_FIRING, ROUND_SILENT, judge, population

from autointerp.statistics.natural_rate import JudgeResolution, estimate_natural_rates, verdict_counts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latents", type=int, default=1_000_000)
    num = parser.parse_args().latents
    rng = np.random.default_rng(0)
    of = population("lognormal", num, rng)
    judged = judge(of, rng)
    # Stopped after two, three or four rounds, and some near strata with fewer windows than were to be judged.
    rounds = rng.integers(2, 5, num)
    done = np.arange(4)[:, None] < rounds
    yes = (judged.yes * done[:, :, None]).sum(axis=0)
    windows = np.maximum(
        (rounds[:, None] * ROUND_SILENT).astype(float) - rng.integers(0, 4, (num, 4)) * [1, 1, 1, 0], yes
    )
    counts = verdict_counts(
        of.pi, ROUND_FIRING * rounds, (judged.firing_yes * done).sum(axis=0), judged.pool, windows, yes,
        judged.audit_judged, judged.audit_yes,
    )  # fmt: skip
    del judged
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for attempt in ("first call, compiling included", "again"):
        began = time.perf_counter()
        found = estimate_natural_rates(counts, 0, JudgeResolution(5_000, 1))
        took = time.perf_counter() - began
        print(
            f"{num:,} latents, {attempt}: {took:.0f} s, peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB ({before:,.0f} before)",
            flush=True,
        )
    inside = (found.precision.low <= of.precision) & (of.precision <= found.precision.high)
    print(f"coverage {inside.mean():.3f}, audit {found.audit_covered} of {found.audit_total}")


if __name__ == "__main__":
    main()
