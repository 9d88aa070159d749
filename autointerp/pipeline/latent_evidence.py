"""Opens the evidence of a chunk of latents. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from autointerp.evidence import LatentEvidence
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkSpec, decode_latents
from sae_core.lens_evidence import TokenChangeEvidence
from sae_core.suffix_evidence import load_suffix_probes


def chunk_evidence(context: RunContext, spec: ChunkSpec, *, causal: bool) -> Iterator[LatentEvidence]:
    """The evidence of each latent of a chunk, ascending; ``causal`` adds ablation and steering where they were made."""
    store = context.exemplars(spec.source)
    path = context.folder.evidence(spec.source, "suffix", spec.ordinal)
    probes = load_suffix_probes(path) if path.is_file() else {}
    ablation = steering = None
    if causal:
        from sae_core.intervention.evidence import AblationEvidence, SteeringEvidence

        path = context.folder.evidence(spec.source, "ablation", spec.ordinal)
        ablation = AblationEvidence.load(path) if path.is_file() else None
        path = context.folder.evidence(spec.source, "steering", spec.ordinal)
        steering = SteeringEvidence.load(path) if path.is_file() else None
    path = context.folder.evidence(spec.source, "token_change", spec.ordinal)
    token_change = TokenChangeEvidence.load(path) if path.is_file() else None
    lens = context.lens(spec.source)
    for latent in decode_latents(spec):
        yield LatentEvidence(latent, store, probes.get(latent, ()), ablation, steering, lens, token_change)


def evidence_of(context: RunContext, source: str, latent: int) -> LatentEvidence:
    """What scorers need of a latent that may lie in any chunk: its windows, not its probes."""
    return LatentEvidence(latent, context.exemplars(source), lens=context.lens(source))
