"""A run's own check of its causal intervals: control directions, left out of the control, must look like random ones. Torch-free."""

from __future__ import annotations

from typing import Any

import numpy as np

from autointerp.pipeline.context import RunContext
from autointerp.statistics.random_push import LeftOut, left_out
from sae_core.intervention.evidence import POOL, AblationEvidence

MAX_LATENTS = 4096
"""Latents of a source that the check looks at."""


def left_out_check(context: RunContext) -> dict[str, Any] | None:
    """Share of left-out directions within the range of a random push, ``.95`` if that range is right.

    ``{"num_draws", "share_covered", "share_below", "share_above", "share_far"}`` over all sources that are no control, JSON-ready;
    None where nothing was ablated or no draw has a range.
    """
    found = [
        left_out_of(AblationEvidence.concatenate(parts))
        for source in context.sources
        if not source.control and (parts := _parts(context, source.name))
    ]
    draws = sum(one.num_draws for one in found)
    if not draws:
        return None
    below, above = sum(one.num_below for one in found), sum(one.num_above for one in found)
    return {
        "num_draws": draws,
        "share_covered": (draws - below - above) / draws,
        "share_below": below / draws,
        "share_above": above / draws,
        "share_far": sum(one.num_far for one in found) / draws,
    }


def _parts(context: RunContext, source: str) -> list[AblationEvidence]:
    """Ablation evidence of the source's first chunks."""
    parts: list[AblationEvidence] = []
    for path in sorted(context.folder.evidence(source, "ablation", 0).parent.glob("ablation-*.safetensors")):
        parts.append(AblationEvidence.load(path))
        if sum(len(part.latents) for part in parts) >= MAX_LATENTS:
            break
    return parts


def left_out_of(evidence: AblationEvidence, min_windows: int = 2) -> LeftOut:
    """The check of :func:`autointerp.statistics.random_push.left_out` on the rows of some latents."""
    latents = np.searchsorted(evidence.latents, evidence.latent)
    counts = np.bincount(latents, minlength=len(evidence.latents))
    logs = np.log(np.maximum(evidence.control_kl_firing, 0.0) + evidence.epsilon)
    kept = np.flatnonzero(counts >= min_windows)
    totals = np.zeros((len(evidence.latents), logs.shape[1]))
    np.add.at(totals, latents, logs)
    norms = np.bincount(latents, weights=evidence.push_norm, minlength=len(evidence.latents))
    return left_out(
        totals[kept] / counts[kept, None],
        evidence.control_kind,
        evidence.control_direction[kept],
        norms[kept] / counts[kept],
        most_freedom=POOL // 2 - 1,
    )
