"""Texts written under steering, on their way to the scorers: of which latents, at which strengths, beside which other labels."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from autointerp.evidence import (
    AblationRequest,
    LatentEvidence,
    SteeredAnswersRequest,
    SteeredTextsRequest,
    SteeringRequest,
)
from autointerp.explanation import Explanation
from autointerp.pipeline.context import RunContext, evidence_request
from autointerp.store import ChunkState
from sae_core.errors import ConfigError
from sae_core.hashing import seed_for
from sae_core.intervention.text_evidence import SteeredTexts, TextState

if TYPE_CHECKING:
    from autointerp.explainers.base import Explainer
    from autointerp.scorers.base import Scorer

STAGE = "steer_texts"
TextsRequest = SteeredTextsRequest | SteeredAnswersRequest
_MOST_LABELS = 4096
"""Latents whose labels others are compared with, at most: of so many there are enough of every length."""


def texts_requests(context: RunContext) -> list[TextsRequest]:
    """What the components ask for."""
    asked = (context.request(SteeredTextsRequest), context.request(SteeredAnswersRequest))
    return [request for request in asked if request is not None]


def check_steered_texts(components: Sequence[Explainer | Scorer]) -> None:
    """Look whether those who read texts written under steering agree, and steering aims at what they want. Errors: ConfigError."""
    texts = evidence_request(components, SteeredTextsRequest)
    answers = evidence_request(components, SteeredAnswersRequest)
    kinds = [c.kind for c in components if any(isinstance(need, TextsRequest) for need in c.needs())]
    if texts is None and answers is None:
        return
    steering = evidence_request(components, SteeringRequest)
    if steering is None and evidence_request(components, AblationRequest) is not None:
        raise ConfigError(
            f"the scorer {kinds[0]!r} reads texts written under steering and the scorer 'intervention' steers no latents: give it "
            "steered_latents of 1 or more and at least one of steering_targets."
        )
    if steering is None:
        raise ConfigError(
            f"the scorer {kinds[0]!r} reads texts written under steering and none asks for steering: add [[scorers]] with kind = "
            '"intervention" and its steering_targets.'
        )
    if texts is not None and texts.target is not None and texts.target not in steering.targets:
        given = ", ".join(f"{target:g}" for target in steering.targets)
        raise ConfigError(
            f"the scorer {kinds[0]!r} wants texts steered to {texts.target:g} nats and the scorer 'intervention' steers to {given}: "
            "choose one of these as target, or add it to steering_targets."
        )


def chosen_target(steering: SteeringRequest, request: SteeredTextsRequest) -> float:
    """The KL in nats of the texts that a request asks for."""
    return max(steering.targets) if request.target is None else request.target


def sample_of(context: RunContext, source: str, request: TextsRequest) -> frozenset[int]:
    """The latents of a source that texts of one kind are made for: a random part of those that are steered."""
    return frozenset(context.steering_order(source)[: request.latents])


def text_sample(context: RunContext, source: str) -> frozenset[int]:
    """The latents of a source that texts of any kind are made for."""
    return frozenset().union(*(sample_of(context, source, request) for request in texts_requests(context)))


def strengths_of(context: RunContext, source: str) -> tuple[dict[int, dict[float, float]], dict[int, TextState]]:
    """Alpha by latent and target where the target was met, and why others have none."""
    from sae_core.intervention.evidence import SteeringEvidence

    strengths: dict[int, dict[float, float]] = {}
    states: dict[int, TextState] = {}
    size = context.config.chunk_latents
    for ordinal in range(-(-len(context.latents(source)) // size)):
        path = context.folder.evidence(source, "steering", ordinal)
        if not path.is_file():
            continue
        steering = SteeringEvidence.load(path)
        for row, latent in enumerate(steering.latent.tolist()):
            if np.isfinite(steering.alpha[row]) and not steering.unreachable[row]:
                strengths.setdefault(latent, {})[float(steering.target[row])] = float(steering.alpha[row])
            elif not steering.num_prompts_fit[row]:
                states[latent] = TextState.TOO_FEW_WINDOWS
            else:
                states.setdefault(latent, TextState.UNREACHABLE)
    return strengths, states


def scorable(context: RunContext) -> bool:
    """Whether what scorers read of *other* chunks is there: the labels that they compare with."""
    if not any(scorer.COMPARES_LABELS for scorer in context.scorers):
        return True
    waits = {"explain"} | {f"revise_{number}" for number in range(1, 5)}
    store, run_id = context.store, context.run_id
    planned = {kind.removeprefix("plan/") for kind in store.planned(run_id)}
    settled = (ChunkState.DONE, ChunkState.POISONED)
    open_stages = {count.stage for count in store.counts(run_id) if count.state not in settled}
    return waits <= planned - open_stages


def with_steered(context: RunContext, source: str, evidence: Iterable[LatentEvidence]) -> Iterator[LatentEvidence]:
    """The evidence with the texts of the latents that are in a sample, and other latents' labels where a scorer wants them."""
    requests = texts_requests(context)
    if not requests:
        yield from evidence
        return
    samples = {request.kind: sample_of(context, source, request) for request in requests}
    selected = context.latents(source)
    loaded: dict[tuple[str, int], SteeredTexts | None] = {}
    labels: list[Explanation] | None = None

    def texts(kind: str, latent: int) -> SteeredTexts | None:
        ordinal = bisect_left(selected, latent) // context.config.chunk_latents
        if (kind, ordinal) not in loaded:
            path = context.folder.evidence(source, kind, ordinal)
            loaded[kind, ordinal] = SteeredTexts.load(path) if path.is_file() else None
        return loaded[kind, ordinal]

    for item in evidence:
        kinds = frozenset(kind for kind, sample in samples.items() if item.latent in sample)
        if not kinds:
            yield item
            continue
        if labels is None:
            labels = _labels(context, source)
        yield replace(
            item,
            in_text_sample=kinds,
            steered_texts=texts("steered_texts", item.latent) if "steered_texts" in kinds else None,
            steered_answers=texts("steered_answers", item.latent) if "steered_answers" in kinds else None,
            other_labels=labels,
        )


def _labels(context: RunContext, source: str) -> list[Explanation]:
    """Labels of a source's latents, of a random part where they are very many; none where no scorer wants them."""
    if not any(scorer.COMPARES_LABELS for scorer in context.scorers):
        return []
    rng = np.random.default_rng(seed_for(context.config.seed, "labels to compare with", source))
    latents = sorted(int(latent) for latent in rng.permutation(context.latents(source))[:_MOST_LABELS])
    kinds = {explainer.kind for explainer in context.explainers}
    return [
        explanation
        for explanation in context.store.explanations(context.run_id, source, latents)
        if explanation.failure is None and explanation.explainer in kinds
    ]
