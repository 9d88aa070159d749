"""Whether the cheap screen puts latents in the order in which real ablation puts them (METHODS 5). Torch-free."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import AblationChoice, AblationRequest
from autointerp.pipeline.context import RunContext
from autointerp.statistics.rank_agreement import rank_agreement
from sae_core.intervention.evidence import AblationEvidence
from sae_core.records import Side

BANDS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1.0)
"""Edges of the bands of firing rates, per token of the score side; a band holds its lower edge."""


def attribution_agreement(context: RunContext, source: str) -> dict[str, Any] | None:
    """How far ``attribution_kl`` agrees with the ``ablation_kl`` of a source's latents that stand for the dictionary, for JSON.

    Spearman's correlation of all of these latents and of those of each band of firing rates, with 95% intervals, null where
    there are too few; the medians behind it, in nats; and how many latents were ablated and why. ``None`` where a run has no
    attribution or no ablation of the source.
    """
    attribution = context.attribution(source)
    if context.request(AblationRequest) is None or attribution is None:
        return None
    choices = context.ablation_choices(source)
    kl = _ablation_kl(context, source)
    sample = [
        latent
        for latent, choice in choices.items()
        if choice in (AblationChoice.ALL, AblationChoice.RANDOM) and latent in kl and attribution.count[latent]
    ]
    latents = np.array(sorted(sample), dtype=np.int64)
    statistics = context.exemplars(source).statistics
    rate = statistics.fire_count[Side.SCORE, latents] / max(1, int(statistics.num_tokens[Side.SCORE]))
    screen, real = attribution.kl[latents], np.array([kl[latent] for latent in latents.tolist()])
    band = np.searchsorted(BANDS, rate, side="right") - 1
    ablated = {choice: sum(found == choice for found in choices.values()) for choice in AblationChoice}
    return {
        **_agreement(screen, real),
        "bands": [
            {"rate_from": low, "rate_below": high, **_agreement(screen[band == number], real[band == number])}
            for number, (low, high) in enumerate(itertools.pairwise(BANDS))
        ],
        "num_chosen": {choice.value: count for choice, count in ablated.items()},
        "num_screened": int((attribution.count > 0).sum()),
        "num_tokens": attribution.num_tokens,
        "num_contexts_skipped": attribution.num_skipped,
    }


def _agreement(screen: NDArray[np.float64], real: NDArray[np.float64]) -> dict[str, Any]:
    found = rank_agreement(screen, real)
    return {
        "spearman": found.value,
        "spearman_low": found.low,
        "spearman_high": found.high,
        "num_latents": found.num_pairs,
        "median_attribution_kl": float(np.median(screen)) if len(screen) else None,
        "median_ablation_kl": float(np.median(real)) if len(real) else None,
    }


def _ablation_kl(context: RunContext, source: str) -> dict[int, float]:
    """Mean KL in nats of the windows of each latent that was ablated in any."""
    found: dict[int, float] = {}
    size = context.config.chunk_latents
    for ordinal in range(-(-len(context.latents(source)) // size)):
        path = context.folder.evidence(source, "ablation", ordinal)
        if path.is_file():
            rows = AblationEvidence.load(path)
            present, place = np.unique(rows.latent, return_inverse=True)
            means = np.bincount(place, weights=rows.kl_firing) / np.bincount(place)
            found |= dict(zip(present.tolist(), means.tolist(), strict=True))
    return found
