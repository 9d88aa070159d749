"""Opens the evidence of a chunk of latents. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autointerp.evidence import EvidenceStore, LatentEvidence, ScreenedWindows
from autointerp.explainers.imported import ImportedExplainer
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkSpec, decode_latents
from sae_core.lens_evidence import TokenChangeEvidence
from sae_core.suffix_evidence import load_suffix_probes


def chunk_evidence(
    context: RunContext, spec: ChunkSpec, *, causal: bool, screened: bool = False
) -> Iterator[LatentEvidence]:
    """The evidence of each latent of a chunk, ascending.

    ``causal`` adds ablation and steering where they were made, ``screened`` what a screen said of the latents' labels.
    """
    latents = decode_latents(spec)
    store, excluded = _scorable(context, spec.source, latents)
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
    attribution = context.attribution(spec.source) if causal else None
    choices = context.ablation_choices(spec.source) if causal else {}
    screens = _screened(context, spec.source, latents) if screened else {}
    for latent in latents:
        yield LatentEvidence(
            latent,
            store,
            probes.get(latent, ()),
            ablation,
            steering,
            lens,
            token_change,
            attribution=attribution,
            ablation_choice=choices.get(latent),
            excluded=excluded.get(latent, frozenset()),
            screened=screens.get(latent, {}),
        )


def _screened(context: RunContext, source: str, latents: Sequence[int]) -> dict[int, dict[str, ScreenedWindows]]:
    found: dict[int, dict[str, ScreenedWindows]] = {}
    for row in context.store.screens(context.run_id, source, latents, stage="screen_1"):
        if row.failure_kind is None:
            items = row.items
            windows = ScreenedWindows(tuple(items["shown_rows"]), tuple(items["flagged_rows"]), items["verify"])
            found.setdefault(row.latent, {})[row.explainer] = windows
    return found


def evidence_of(context: RunContext, source: str, latent: int) -> LatentEvidence:
    """What scorers need of a latent that may lie in any chunk: its windows, not its probes."""
    store, excluded = _scorable(context, source, [latent])
    return LatentEvidence(latent, store, lens=context.lens(source), excluded=excluded.get(latent, frozenset()))


def _scorable(
    context: RunContext, source: str, latents: Sequence[int]
) -> tuple[EvidenceStore, dict[int, frozenset[tuple[int, int]]]]:
    """The windows of a source, and by latent those that must not be scored: of labels from elsewhere the ones that whoever wrote
    them has seen."""
    store = context.exemplars(source)
    imported = [explainer for explainer in context.explainers if isinstance(explainer, ImportedExplainer)]
    if not imported:
        return store, {}
    taken = [e for e in context.store.explanations(context.run_id, source, latents) if e.explainer == imported[0].kind]
    excluded = {
        e.latent: frozenset((int(c), int(p)) for c, _, p in (place.partition(":") for place in e.exemplar_ids))
        for e in taken
        if e.exemplar_ids
    }
    if any(e.payload.get("imported", {}).get("sides") == "held_back" for e in taken):
        return imported[0].held_back(store), excluded
    return store, excluded
