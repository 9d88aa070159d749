"""Choosing windows keeps to one a document and to the store's order."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from sae_core.intervention.windows import choose_windows
from sae_core.records import Exemplar, Origin, Side


class Sample:
    """A store that holds a given list of (context, position, document) for every latent."""

    def __init__(self, places: list[tuple[int, int, int]]) -> None:
        self.places = places

    def exemplars(self, latent: int, side: Side, origin: Origin) -> list[Exemplar]:
        assert (side, origin) == (Side.SCORE, Origin.SAMPLED)
        ids, acts = np.zeros(8, dtype=np.int32), np.ones(8, dtype=np.float32)
        order = np.random.default_rng(latent).permutation(len(self.places))
        return [
            Exemplar(latent, side, origin, ids, acts, ids[:0], document=d, context=c, position=p)
            for c, p, d in (self.places[i] for i in order)
        ]


def test_one_window_a_document_first_then_distinct_windows() -> None:
    store = Sample([(0, 0, 0), (0, 8, 0), (1, 0, 0), (2, 0, 1), (2, 0, 1), (3, 8, 2)])
    for latent in range(20):
        windows = choose_windows(store, [latent], Side.SCORE, 5)[latent]
        assert {w.document for w in windows[:3]} == {0, 1, 2}
        assert len(set(windows)) == len(windows) == 5


def test_a_shared_order_is_uniform_over_windows_and_brings_latents_together() -> None:
    store = Sample([(c, 0, c) for c in range(40)])
    counts = np.zeros(40)
    for seed in range(300):
        chosen = choose_windows(store, range(3), Side.SCORE, 4, shared_order_seed=seed)
        contexts = [{w.context for w in chosen[latent]} for latent in range(3)]
        assert contexts[0] == contexts[1] == contexts[2]
        counts[list(contexts[0])] += 1
    # 30 expected in each of 40 cells: chi-square with 39 degrees of freedom, 1e-4 quantile 80.
    assert ((counts - 30) ** 2 / 30).sum() < 80


def test_what_scorers_read_loads_no_torch() -> None:
    code = (
        "import sys; import sae_core.intervention.evidence, sae_core.intervention.windows; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
