"""Do the causal intervals hold what they should 95 times in 100? Simulated, and on the ablations of a real run (docs/causal.md).

Simulated: windows and directions whose ln KL is normal, has heavy tails (Student's t of 3 degrees of freedom; a log-normal
mixture, 15% of the values 2 nats up) or a tail on one side alone (exponential). Measured: latents of a run's source are
ablated once more with many windows and directions; these are the population, from which few are drawn again and again, and
each direction in turn is left out of the control.

OMP_NUM_THREADS=1 python benchmarks/causal_coverage.py                                    # simulated, 2 minutes
OMP_NUM_THREADS=1 python benchmarks/causal_coverage.py --run demo --evidence demo.safetensors   # measured, 6 minutes more
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from autointerp.pipeline.finding import find_run
from autointerp.pipeline.starting import open_run
from autointerp.statistics.multiplicity import benjamini_yekutieli
from autointerp.statistics.random_push import control_means, left_out, random_push_chance, random_push_range
from sae_core.intervention.evidence import POOL, AblationEvidence

Floats = NDArray[np.float64]
Noise = Callable[[np.random.Generator, tuple[int, ...]], Floats]

NOISES: dict[str, Noise] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "t3": lambda rng, shape: rng.standard_t(3, shape) / np.sqrt(3),
    "mixture": lambda rng, shape: rng.normal(0, 0.6, shape) + 2 * (rng.random(shape) < 0.15) - 0.3,
    "one side": lambda rng, shape: rng.exponential(size=shape) - 1,
}
"""Mean 0, variance about 1."""
WINDOWS, DIRECTIONS, SPREADS = (8, 50), (4, 8, 16), (0.05, 0.3, 1.0)
DRAWS = 4000
MEASURED_WINDOWS, MEASURED_DIRECTIONS, MEASURED_POSITIONS = 32, 16, 16
MOST_FREEDOM = POOL // 2 - 1


def interval(own_Dn: Floats, control_DnR: Floats) -> tuple[Floats, Floats]:
    """Value and half width of :func:`autointerp.statistics.causal_effect`, of many draws at once (of logarithms)."""
    windows, directions = control_DnR.shape[1:]
    delta = own_Dn - control_DnR.mean(axis=2)
    of_windows = delta.var(axis=1, ddof=1) / windows
    of_directions = control_DnR.mean(axis=1).var(axis=1, ddof=1) / directions
    squared = of_windows + of_directions
    freedom = squared**2 / (of_windows**2 / (windows - 1) + of_directions**2 / (directions - 1))
    return delta.mean(axis=1), stdtrit(freedom, 0.975) * np.sqrt(squared)


def simulated() -> None:
    """Coverage of causal_effect_low/high: lowest and highest over the directions' spreads."""
    print("| windows differ as | directions differ as | n | R = 4 | R = 8 | R = 16 |\n|---|---|---|---|---|---|")
    for windows_like in NOISES:
        for directions_like in NOISES:
            for windows in WINDOWS:
                cells = []
                for directions in DIRECTIONS:
                    shares = [_share(windows_like, directions_like, windows, directions, s) for s in SPREADS]
                    cells.append(f"{min(shares):.3f}-{max(shares):.3f}")
                print(f"| {windows_like} | {directions_like} | {windows} | {' | '.join(cells)} |", flush=True)


def _share(windows_like: str, directions_like: str, windows: int, directions: int, spread: float) -> float:
    rng = np.random.default_rng([windows, directions, int(100 * spread)])
    noise = NOISES[windows_like]
    window = rng.normal(-6, 1.5, (DRAWS, windows))
    push = spread * NOISES[directions_like](rng, (DRAWS, directions))
    own = window + 0.8 * noise(rng, (DRAWS, windows))
    control = window[..., None] + push[:, None] + 0.6 * noise(rng, (DRAWS, windows, directions))
    value, half = interval(own, control)
    return float(np.mean(np.abs(value) <= half))


def measured(run: str, source: str | None, latents: int, path: Path) -> None:
    """Coverage on a run's own subject and coder."""
    evidence = AblationEvidence.load(path) if path.is_file() else _ablate(run, source, latents, path)
    floor = evidence.epsilon
    own, control = np.log(evidence.kl_firing + floor), np.log(evidence.control_kl_firing + floor)
    rows = [evidence.rows_of(latent) for latent in evidence.latents.tolist()]
    kept = [i for i, mine in enumerate(rows) if len(mine) >= WINDOWS[0]]
    print(f"\n{len(kept)} latents with {min(len(rows[i]) for i in kept)} to {max(len(rows[i]) for i in kept)} windows")
    rng = np.random.default_rng(0)
    half = control.shape[1] // 2
    kinds = np.repeat([0, 1], half)
    print("| n | R | interval covers | left-out direction in range | width of the range |\n|---|---|---|---|---|")
    for windows in (2, 8, 16):
        for directions in DIRECTIONS:
            covered = []
            means = np.empty((len(kept), directions))
            members = np.empty((len(kept), directions), dtype=np.int64)
            for place, i in enumerate(kept):
                truth = own[rows[i]].mean() - control[rows[i]].mean()
                at = rng.choice(rows[i], (200, windows))
                which = np.concatenate(
                    [rng.integers(k * half, (k + 1) * half, (200, directions // 2)) for k in range(2)], axis=1
                )
                value, width = interval(own[at], control[at[:, :, None], which[:, None, :]])
                covered.append(np.mean(np.abs(value - truth) <= width))
                few = rng.choice(rows[i], windows, replace=False)
                chosen = np.concatenate([rng.choice(half, directions // 2, replace=False) + k * half for k in range(2)])
                means[place] = control[np.ix_(few, chosen)].mean(axis=0)
                members[place] = evidence.control_direction[i, chosen]
            norms = np.array([evidence.push_norm[rows[i]].mean() for i in kept])
            kind = kinds[: half * 2][np.r_[0 : directions // 2, half : half + directions // 2]]
            found = left_out(means, kind, members, norms, most_freedom=MOST_FREEDOM)
            low, high = random_push_range(control_means(means, kind), norms, most_freedom=MOST_FREEDOM)
            share = found.num_covered / max(1, found.num_draws)
            print(
                f"| {windows} | {directions} | {np.mean(covered):.3f} | {share:.3f} of {found.num_draws} "
                f"| {np.nanmedian(high - low):.2f} |",
                flush=True,
            )

    _raw(evidence, [rows[i] for i in kept], rng)


def false_discoveries() -> None:
    """How often causal_q < .05 is given in dictionaries of 2,000 latents that are nothing but one more random push each."""
    print("\n| pushes differ as | dictionaries of 100 with any q < .05 | most of 2,000 |\n|---|---|---|")
    for name, noise in NOISES.items():
        rng = np.random.default_rng(1)
        counts = []
        for _ in range(100):
            offset, spread = np.repeat([0.0, 1.0], 3), np.repeat([0.4, 0.6], 3)
            mean = offset + spread * np.exp(0.3 * rng.normal(size=(2000, 1))) * noise(rng, (2000, 6))
            mean += 0.6 * noise(rng, (2000, 6, 8)).mean(axis=2)
            own = np.where(rng.random(2000) < 0.5, 2, 5)
            effect = mean[np.arange(2000), own] - mean[:, [0, 1, 3, 4]].mean(axis=1)
            controls = control_means(mean[:, [0, 1, 3, 4]], np.array([0, 0, 1, 1]))
            chance = random_push_chance(controls, np.ones(2000), effect, most_freedom=MOST_FREEDOM)
            counts.append(int((benjamini_yekutieli(chance) < 0.05).sum()))
        print(f"| {name} | {np.count_nonzero(counts)} | {max(counts)} |", flush=True)


def _raw(evidence: AblationEvidence, rows: list[NDArray[np.intp]], rng: np.random.Generator) -> None:
    """Coverage of Student's t interval of raw figures' means over windows, latent by latent."""
    floor = evidence.epsilon
    logs = np.log(evidence.kl_firing + floor)
    spread = np.median([logs[mine].std(ddof=1) for mine in rows])
    print(f"\nstandard deviation of ln KL over a latent's windows: {spread:.2f} (median)")
    print("| n | mean KL | mean ln KL | mean change of cross-entropy |\n|---|---|---|---|")
    figures = (evidence.kl_firing, logs, evidence.delta_ce)
    for windows in (8, 16):
        cells = []
        for values in figures:
            covered = []
            for mine in rows:
                drawn = values[rng.choice(mine, (400, windows))]
                half = stdtrit(windows - 1, 0.975) * drawn.std(axis=1, ddof=1) / np.sqrt(windows)
                covered.append(np.mean(np.abs(drawn.mean(axis=1) - values[mine].mean()) <= half))
            cells.append(f"{np.mean(covered):.3f}")
        print(f"| {windows} | {' | '.join(cells)} |", flush=True)


def _ablate(run: str, source: str | None, latents: int, path: Path) -> AblationEvidence:
    from sae_core.intervention.ablation import AblationSettings, run_ablation
    from sae_core.intervention.windows import choose_windows
    from sae_core.records import Side

    context = open_run(*find_run(run))
    name = source or next(record.name for record in context.sources if not record.control)
    store = context.exemplars(name)
    fires = np.flatnonzero(store.statistics.num_windows_firing[Side.SCORE] >= WINDOWS[0])
    chosen = np.random.default_rng(0).permutation(fires)[:latents].tolist()
    evidence = run_ablation(
        context.subject,
        context.attached(name).coder,
        context.corpus.context,
        context.corpus.num_contexts,
        choose_windows(store, sorted(chosen), Side.SCORE, MEASURED_WINDOWS, shared_order_seed=0),
        settings=AblationSettings(control_directions=MEASURED_DIRECTIONS, max_positions=MEASURED_POSITIONS),
    )
    evidence.save(path)
    return evidence


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="output folder of a run to ablate once more")
    parser.add_argument("--source", help="its source; the first by default")
    parser.add_argument("--latents", type=int, default=200)
    parser.add_argument(
        "--evidence", type=Path, default=Path("causal_coverage.safetensors"), help="where rows are kept"
    )
    given = parser.parse_args()
    if given.run is None:
        simulated()
        false_discoveries()
    else:
        measured(given.run, given.source, given.latents, given.evidence)


if __name__ == "__main__":
    main()
