"""Finds what of their contexts latents need in order to fire: evidence for the pattern explainer."""

from __future__ import annotations

from autointerp.evidence import SuffixRequest
from autointerp.pipeline.atomic_files import sync
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, decode_latents, latent_chunks

EVIDENCE = "suffix"


class Probe(Stage):
    """Exemplars to shortest suffixes and token importances."""

    name = "probe"
    queue = "gpu"
    unit = "latents"
    after_all = ("merge",)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context) if context.request(SuffixRequest) else []

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        from sae_core.probe import ProbeSettings, probe_suffixes
        from sae_core.suffix_evidence import save_suffix_probes

        request = context.request(SuffixRequest) or SuffixRequest()
        latents = decode_latents(spec)
        probes = probe_suffixes(
            context.subject,
            context.attached(spec.source),
            context.exemplars(spec.source),
            latents,
            ProbeSettings(
                exemplars=request.exemplars,
                keep=request.keep,
                longest=request.longest,
                batch_tokens=context.batch_tokens,
                seed=context.config.seed,
            ),
            # it counts exemplars, the bar counts latents
            lambda exemplars: progress(exemplars // request.exemplars),
        )
        path = context.folder.evidence(spec.source, EVIDENCE, spec.ordinal)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_suffix_probes(path, probes)
        sync(path)
        return ChunkResult()
