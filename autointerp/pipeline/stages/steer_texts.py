"""Has the subject write with latents steered: texts for those who judge whether a label says what its latent does (METHODS 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import LatentEvidence, SteeredAnswersRequest, SteeredTextsRequest, SteeringRequest
from autointerp.judging.instructions import read_instructions
from autointerp.judging.steered_judge import near_latents
from autointerp.pipeline.atomic_files import sync
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, decode_latents, latent_chunks
from autointerp.pipeline.steered_texts import (
    STAGE,
    TextsRequest,
    chosen_target,
    sample_of,
    strengths_of,
    text_sample,
    texts_requests,
)
from autointerp.sampling.firing import sample_firing
from autointerp.sampling.window import ShownWindow
from sae_core.hashing import seed_for
from sae_core.intervention.text_evidence import TextState
from sae_core.records import Side

if TYPE_CHECKING:
    from sae_core.intervention.steered_texts import TextPrompt


class SteerTexts(Stage):
    """Strengths of steering to texts."""

    name = STAGE
    queue = "gpu"
    unit = "latents"
    after_all = ("intervene", "lens")
    leaves = ("steered_texts", "steered_answers")
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        chunks = []
        for chunk in latent_chunks(context) if texts_requests(context) else []:
            mine = len(set(decode_latents(chunk)) & text_sample(context, chunk.source))
            if mine:
                chunks.append(ChunkSpec(chunk.ordinal, chunk.source, chunk.payload, mine))
        return chunks

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        from sae_core.intervention.steered_texts import steer_texts

        strengths, failed = strengths_of(context, spec.source)
        for request in texts_requests(context):
            latents = sorted(set(decode_latents(spec)) & sample_of(context, spec.source, request))
            able, num_others = strengths, 0
            if isinstance(request, SteeredTextsRequest):
                steering = context.request(SteeringRequest)
                assert steering is not None, "where none steers, the configuration is refused"
                target = chosen_target(steering, request)
                able = {latent: {target: own[target]} for latent, own in strengths.items() if target in own}
                num_others = 2  # the three-way choice has so many wrong texts
            prompts = _prompts(context, spec.source, request, [latent for latent in latents if latent in able])
            # of a latent whose steering was lost nothing is said here; what is left out of able missed this target
            known = [latent for latent in latents if latent in strengths or latent in failed]
            states = {latent: failed.get(latent, TextState.UNREACHABLE) for latent in known}
            shared = isinstance(request, SteeredAnswersRequest)
            for latent, own in prompts.items():
                none = TextState.NO_ROOM if shared else TextState.TOO_FEW_WINDOWS
                states[latent] = TextState.TEXTS if own else none
            texts = steer_texts(
                context.subject,
                context.attached(spec.source),
                states,
                prompts,
                able,
                others=_others(context, spec.source, latents),
                num_others=num_others,
                new_tokens=request.new_tokens,
                temperature=request.temperature,
                batch_tokens=context.batch_tokens,
                seed=seed_for(context.config.seed, "steered texts"),
                progress=progress,
            )
            path = context.folder.evidence(spec.source, request.kind, spec.ordinal)
            path.parent.mkdir(parents=True, exist_ok=True)
            texts.save(path)
            sync(path)
        return ChunkResult()


def _others(context: RunContext, source: str, latents: Sequence[int]) -> dict[int, list[int]]:
    """Latents of the sample that may stand beside each one: not its decoder neighbours."""
    lens, sample = context.lens(source), sorted(text_sample(context, source))
    near = {latent: near_latents(lens, latent) for latent in latents}
    return {latent: [other for other in sample if other not in near[latent]] for latent in latents}


def _prompts(
    context: RunContext, source: str, request: TextsRequest, latents: Sequence[int]
) -> Mapping[int, list[TextPrompt]]:
    """What each latent's texts continue."""
    room = context.subject.max_context - request.new_tokens
    if isinstance(request, SteeredAnswersRequest):
        shared = _instructions(context, source, request, room)
        return dict.fromkeys(latents, shared)
    return {latent: _own_prompts(context, source, request.texts, latent, room) for latent in latents}


def _own_prompts(context: RunContext, source: str, count: int, latent: int, room: int) -> list[TextPrompt]:
    """Contexts of the score side up to the first token of a window on which the latent fires, one a document as far as there are."""
    from sae_core.intervention.steered_texts import TextPrompt

    evidence = LatentEvidence(latent, context.exemplars(source))
    windows = sample_firing(evidence, Side.SCORE, 8 * count, context.config.seed)
    first: dict[int, ShownWindow] = {}
    for window in windows:
        first.setdefault(window.document, window)
    taken = {window.place for window in first.values()}
    prompts = []
    for window in [*first.values(), *(window for window in windows if window.place not in taken)]:
        ids = _up_to_firing(context, window)
        if len(ids) <= room:
            prompts.append(TextPrompt(ids, window.context))
    return prompts[:count]


def _up_to_firing(context: RunContext, window: ShownWindow) -> NDArray[np.int32]:
    ids = context.corpus.context(window.context)
    at = window.position + int(window.firing_positions[0])
    # of a window that begins with the BOS, the BOS is no token of it
    at += int(ids[window.position] != window.token_ids[0])
    return np.asarray(ids[: at + 1], dtype=np.int32)


def _instructions(context: RunContext, source: str, request: SteeredAnswersRequest, room: int) -> list[TextPrompt]:
    """The same for all latents: rendered instructions, or lines of a file or beginnings of the corpus' text where nothing renders."""
    from sae_core.chat import chat_template
    from sae_core.intervention.steered_texts import TextPrompt

    given = context.config.subject
    template = chat_template(given.model, revision=given.revision)
    if template is None and not request.instructions:
        pool = context.exemplars(source).pool(Side.SCORE)
        rng = np.random.default_rng(seed_for(context.config.seed, "texts to go on from"))
        rows = rng.permutation(len(pool.tokens))
        length = pool.tokens.shape[1] - pool.context_tokens
        found: dict[int, TextPrompt] = {}
        for row in rows.tolist():
            stop, ordinal = int(pool.position[row]) + length, int(pool.context[row])
            if stop <= room and len(found) < request.texts:
                found.setdefault(ordinal, TextPrompt(context.corpus.context(ordinal)[:stop].astype(np.int32), ordinal))
        return list(found.values())
    prompts = []
    bos = context.subject.bos_id
    for line in read_instructions(request.instructions, request.texts):
        text = line if template is None else template([{"role": "user", "content": line}], answered=False)
        ids = context.subject.tokenizer.encode(text, add_special_tokens=False).ids
        ids = ids if bos is None or ids[:1] == [bos] else [bos, *ids]
        if 0 < len(ids) <= room:
            prompts.append(TextPrompt(np.array(ids, dtype=np.int32), instruction=line))
    return prompts
