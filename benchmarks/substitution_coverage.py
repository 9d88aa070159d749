"""How often the interval of ``substitution`` covers the truth, beside the intervals that one would try first.

    python benchmarks/substitution_coverage.py [--draws 1500] [--seed 0]

Draws windows whose true ``rho = (mean kl + odds * mean silent) / mean ablated`` is known: ablated KLs are log-normal (sigma 1,
1.5 or 2) or the exponential of a t with 3 degrees of freedom; a label misses some windows whole (KL as ablated) and is off by
a little in the others; silent windows cost what the population says. n firing and n silent windows a draw. Prints a row for
each population and n: rho, then for each interval its coverage and, in brackets, its median width in units of rho.

Then the same where silent windows are counted in a sample of the text that holds .3 to 10 windows in which the latent fires: how many
come is chance, and often none does. A label keeps nine tenths in firing windows; its silent ones cost what ablated ones do.
Prints the share of draws with a figure, by the scorer's rule, and for those the coverage of the published interval, of the
same without a word on windows that the sample does not hold, and the share that has a lower end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import norm

from autointerp.scorers.substitution import MIN_SILENT
from autointerp.statistics.recovered import recovered_share

Floats = NDArray[np.float64]
Interval = Callable[[Floats, Floats, Floats, float, np.random.Generator], tuple[float, float]]
_TRUTH_FROM = 4_000_000


@dataclass(frozen=True)
class Population:
    """Windows of one latent under one label."""

    name: str
    odds: float
    """Silent windows with a prediction for each firing one."""
    missed: float
    """Share of firing windows that the label misses."""
    off: float
    """KL of the others as a share of their ablation's."""
    silent: float
    """Mean KL of a silent window with a prediction, in units of the typical ablated one."""


POPULATIONS = (
    Population("misses 2%", 0.01, 0.02, 0.01, 1.0),
    Population("misses 10%", 0.05, 0.1, 0.02, 1.0),
    Population("misses 40%", 0.3, 0.4, 0.1, 1.0),
    Population("misses 80%", 1.0, 0.8, 0.3, 1.0),
    Population("over-broad", 20.0, 0.3, 0.1, 0.3),
)
TAILS: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    **{
        f"sigma {sigma:g}": lambda rng, n, sigma=sigma: np.exp(sigma * rng.standard_normal(n))  # type: ignore[misc]
        for sigma in (1.0, 1.5, 2.0)
    },
    "t3": lambda rng, n: np.exp(np.clip(0.8 * rng.standard_t(3, n), -12, 6)),
}


def draw(
    population: Population, tail: Callable[[np.random.Generator, int], Floats], n: int, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    """``(kl, ablated, silent)``, each [n]."""
    ablated = tail(rng, n)
    kept = population.off * np.exp(rng.standard_normal(n))
    kl = ablated * np.where(rng.random(n) < population.missed, 1.0, kept)
    return kl, ablated, population.silent * np.exp(-0.5) * tail(rng, n)


def published(
    kl: Floats, ablated: Floats, silent: Floats, odds: float, rng: np.random.Generator
) -> tuple[float, float]:
    """The interval of :func:`recovered_share`, as one of rho."""
    return _of_rho(kl, ablated, silent, odds, unseen=True)


def fieller(kl: Floats, ablated: Floats, silent: Floats, odds: float, rng: np.random.Generator) -> tuple[float, float]:
    """The same without the unseen window."""
    return _of_rho(kl, ablated, silent, odds, unseen=False)


def _of_rho(kl: Floats, ablated: Floats, silent: Floats, odds: float, *, unseen: bool) -> tuple[float, float]:
    got = recovered_share(kl, ablated, silent, odds, unseen=unseen)
    assert got.high is not None
    return 1 - got.high, np.inf if got.low is None else 1 - got.low


def log_t(kl: Floats, ablated: Floats, silent: Floats, odds: float, rng: np.random.Generator) -> tuple[float, float]:
    """t interval of the log-ratio by the delta method."""
    rho = (kl.mean() + odds * silent.mean()) / ablated.mean()
    n = len(kl)
    error = np.sqrt((kl - rho * ablated).var(ddof=1) / n + odds**2 * silent.var(ddof=1) / n) / (rho * ablated.mean())
    half = stdtrit(n - 1, 0.975) * error
    return rho * np.exp(-half), rho * np.exp(half)


def percentile(
    kl: Floats, ablated: Floats, silent: Floats, odds: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentile bootstrap over windows."""
    low, high = np.quantile(_resampled(kl, ablated, silent, odds, rng), [0.025, 0.975])
    return float(low), float(high)


def bca(kl: Floats, ablated: Floats, silent: Floats, odds: float, rng: np.random.Generator) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap."""
    rho = (kl.mean() + odds * silent.mean()) / ablated.mean()
    found = _resampled(kl, ablated, silent, odds, rng)
    bias = norm.ppf(np.clip((found < rho).mean() + 0.5 * (found == rho).mean(), 1e-3, 1 - 1e-3))
    influence = np.concatenate([kl - rho * ablated, odds * (silent - silent.mean())])
    influence[: len(kl)] -= influence[: len(kl)].mean()
    size = 6 * (influence**2).sum() ** 1.5
    bend = (influence**3).sum() / size if size else 0.0
    z = bias + norm.ppf([0.025, 0.975])
    low, high = np.quantile(found, norm.cdf(bias + z / (1 - bend * z)))
    return float(low), float(high)


def _resampled(kl: Floats, ablated: Floats, silent: Floats, odds: float, rng: np.random.Generator) -> Floats:
    first, second = rng.integers(len(kl), size=(400, len(kl))), rng.integers(len(silent), size=(400, len(silent)))
    means: Floats = (kl[first].mean(1) + odds * silent[second].mean(1)) / ablated[first].mean(1)
    return means


INTERVALS: dict[str, Interval] = {
    "published": published, "Fieller": fieller, "log t": log_t, "percentile": percentile, "BCa": bca,
}  # fmt: skip


def print_counted_in_a_sample(draws: int, rng: np.random.Generator) -> None:
    """The second table; ``held`` is how many firing windows the sample of the text holds on average."""
    print("\nheld", "odds".rjust(5), "tail".ljust(10), "n".rjust(3), "figure", "published", "as counted", "lower end")
    for held in (0.3, 1.0, 3.0, 10.0):
        for odds in (0.1, 0.3, 1.0, 3.0, 10.0):
            for name, tail in TAILS.items():
                for n in (8, 16, 32):
                    covered: dict[str, list[bool]] = {"published": [], "as counted": []}
                    ended = []
                    for _ in range(draws):
                        count = int(rng.poisson(odds * held))
                        if held < 1 and count < MIN_SILENT:
                            continue
                        ablated, silent = tail(rng, n), tail(rng, min(count, n))
                        for kind, of_one in (("published", 1 / held), ("as counted", 0.0)):
                            spread = 1 / count if count else 0.0
                            got = recovered_share(
                                0.1 * ablated, ablated, silent, count / held, spread, odds_of_one=of_one
                            )
                            assert got.high is not None
                            covered[kind].append((got.low is None or got.low <= 0.9 - odds) and got.high >= 0.9 - odds)
                            if of_one:
                                ended.append(got.low is not None)
                    if len(ended) < 100:
                        continue  # hardly any draw has a figure
                    shares = [
                        len(ended) / draws,
                        *(float(np.mean(given)) for given in covered.values()),
                        np.mean(ended),
                    ]
                    print(f"{held:4g} {odds:5g} {name:10} {n:3}", *(f"{share:8.3f}" for share in shares))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draws", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    print("population".ljust(12), "tail".ljust(10), "n".rjust(3), "rho".rjust(6), *(f"{n:>16}" for n in INTERVALS))
    for population in POPULATIONS:
        for name, tail in TAILS.items():
            kl, ablated, silent = draw(population, tail, _TRUTH_FROM, rng)
            rho = float((kl.mean() + population.odds * silent.mean()) / ablated.mean())
            for n in (8, 16, 32, 64):
                covered, widths = dict.fromkeys(INTERVALS, 0), {kind: [] for kind in INTERVALS}  # type: ignore[var-annotated]
                for _ in range(given.draws):
                    sample = draw(population, tail, n, rng)
                    for kind, interval in INTERVALS.items():
                        low, high = interval(*sample, population.odds, rng)
                        covered[kind] += low <= rho <= high
                        widths[kind].append(high - low)
                cells = [f"{covered[kind] / given.draws:.3f} ({np.median(widths[kind]):.2f})" for kind in INTERVALS]
                print(population.name.ljust(12), name.ljust(10), f"{n:3}", f"{rho:6.2f}", *(f"{c:>16}" for c in cells))
    print_counted_in_a_sample(given.draws, rng)


if __name__ == "__main__":
    main()
