"""Reads back what the attribution stages left of a source. Torch-free."""

from __future__ import annotations

from autointerp.pipeline.folder import RunFolder
from sae_core.attribution_evidence import AttributionEvidence

SAMPLED = "attribution"
"""Kind of the evidence files of a random sample of contexts, one a part of it."""
RARE = "attribution_rare"
"""Kind of those of the contexts of latents that fire in none of the sample's."""


def read_attribution(folder: RunFolder, source: str, *, rare: bool = True) -> AttributionEvidence | None:
    """All parts of a source's attribution as one, a row a latent; None where there is none. ``rare``: with the latents that fire in none
    of the sample's contexts."""
    evidence = folder.evidence(source, SAMPLED, 0).parent
    kinds = [SAMPLED, RARE] if rare else [SAMPLED]
    paths = [path for kind in kinds for path in sorted(evidence.glob(f"{kind}-[0-9]*.safetensors"))]
    return AttributionEvidence.joined([AttributionEvidence.load(path) for path in paths]) if paths else None
