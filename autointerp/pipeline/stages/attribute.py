"""The effect of every latent to first order, in one backward pass a batch: a cheap screen before interventions (METHODS 5)."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import AttributionRequest
from autointerp.pipeline.atomic_files import sync
from autointerp.pipeline.attributions import RARE, SAMPLED, read_attribution
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, decode_latents, encode_latents
from sae_core.context_sample import sample_contexts
from sae_core.records import Side

_CHUNK_TOKENS = 1 << 16
"""Tokens of a chunk: what a kill loses at most."""
_BATCH_SHARE = 4
"""A pass that keeps what a backward pass needs has this part of the tokens of one that does not."""
_RARE_LATENTS = 256
"""Latents of a chunk whose own contexts are read."""


class Attribute(Stage):
    """A random sample of the score side's contexts to the attribution of every latent of all sources."""

    name = "attribute"
    queue = "gpu"
    unit = "tokens"
    after_all = ("merge",)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        request = context.request(AttributionRequest)
        if request is None:
            return []
        lengths = np.diff(np.asarray(context.corpus.context_start))[_sample(context, request)]
        before = np.cumsum(lengths) - lengths
        firsts = np.flatnonzero(np.diff(before // _CHUNK_TOKENS, prepend=-1)).tolist()
        return [
            ChunkSpec(ordinal, payload={"contexts": [first, stop]}, units=int(lengths[first:stop].sum()))
            for ordinal, (first, stop) in enumerate(itertools.pairwise([*firsts, len(lengths)]))
        ]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        from sae_core.attribution import attribute

        request = context.request(AttributionRequest)
        assert request is not None
        first, stop = spec.payload["contexts"]
        names = [source.name for source in context.sources]
        found = attribute(
            context.subject,
            [context.attached(name) for name in names],
            context.corpus,
            _sample(context, request)[first:stop],
            seed=context.config.seed,
            batch_tokens=max(1, context.batch_tokens // _BATCH_SHARE),
            progress=progress,
        )
        for name, evidence in zip(names, found, strict=True):
            path = context.folder.evidence(name, SAMPLED, spec.ordinal)
            evidence.save(path)
            sync(path)
        return ChunkResult()


class AttributeRare(Stage):
    """The same for latents that fire on the score side, and in none of the sample's contexts: contexts of their own are read."""

    name = "attribute_rare"
    queue = "gpu"
    unit = "latents"
    after_all = ("attribute",)
    leaves = (RARE,)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        if context.request(AttributionRequest) is None:
            return []
        chunks = []
        for source in context.sources:
            missing = _unseen(context, source.name)
            for ordinal, start in enumerate(range(0, len(missing), _RARE_LATENTS)):
                part = missing[start : start + _RARE_LATENTS]
                chunks.append(ChunkSpec(ordinal, source.name, {"latents": encode_latents(part)}, len(part)))
        return chunks

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        from sae_core.attribution import attribute
        from sae_core.intervention.windows import choose_windows

        request = context.request(AttributionRequest)
        assert request is not None
        latents, seed = decode_latents(spec), context.config.seed
        windows = choose_windows(
            context.exemplars(spec.source), latents, Side.SCORE, request.rare_windows, shared_order_seed=seed
        )
        # a context chosen for one latent is no random one of another
        only: dict[int, list[int]] = {}
        for latent, chosen in windows.items():
            for ordinal in {window.context for window in chosen}:
                only.setdefault(ordinal, []).append(latent)
        total = max(1, sum(len(context.corpus.context(ordinal)) for ordinal in only))
        (evidence,) = attribute(
            context.subject,
            [context.attached(spec.source)],
            context.corpus,
            sorted(only),
            only=only,
            seed=seed,
            batch_tokens=max(1, context.batch_tokens // _BATCH_SHARE),
            progress=lambda tokens: progress(
                len(latents) * tokens // total
            ),  # it counts tokens, the bar counts latents
        )
        path = context.folder.evidence(spec.source, RARE, spec.ordinal)
        evidence.save(path)
        sync(path)
        return ChunkResult()


def _sample(context: RunContext, request: AttributionRequest) -> NDArray[np.int64]:
    return sample_contexts(context.corpus, Side.SCORE, request.tokens, context.config.seed)


def _unseen(context: RunContext, source: str) -> list[int]:
    """Selected latents of a source that fire on the score side, and not in the sample."""
    found = read_attribution(context.folder, source, rare=False)
    if (
        found is None
    ):  # given up: then nothing is known of any latent, and few windows of each would be all the work again
        return []
    fires = context.exemplars(source).statistics.fire_count[Side.SCORE]
    return [latent for latent in context.latents(source) if fires[latent] and not found.count[latent]]
