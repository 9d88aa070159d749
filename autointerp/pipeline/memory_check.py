"""Says before a run starts how much memory its extraction needs, and refuses what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autointerp.config import RunConfig
from sae_core.memory import CoderSize, available_bytes, check_fits, sentence

if TYPE_CHECKING:
    from sae_core.attachment import AttachedCoder
    from sae_core.partial import ExtractionSettings
    from sae_core.subject import SubjectModel


def check_memory(
    config: RunConfig,
    settings: ExtractionSettings,
    subject: SubjectModel,
    attached: Mapping[str, AttachedCoder],
    free: int | None = None,
) -> str:
    """A sentence on what extraction needs. Errors: ConfigError where ``free`` bytes (what there is, without it) do not suffice."""
    tokens = _first_tokens(config, subject)
    coders = _sizes(subject, attached, tokens)
    extraction = config.extraction
    need = check_fits(
        coders,
        settings,
        extraction.shard_size,
        extraction.num_tokens,
        extraction.latents_per_pass,
        available_bytes() if free is None else free,
    )
    most = max(coder.num_latents for coder in coders)
    return sentence(need, coders, settings, -(-most // (extraction.latents_per_pass or most)))


def _first_tokens(config: RunConfig, subject: SubjectModel) -> NDArray[np.int32]:
    """[T] tokens of the corpus' first document, to see how many latents are active on it."""
    from autointerp.pipeline.stages.tokenize import corpus_spec
    from sae_core.documents import documents_in

    spec = corpus_spec(config)
    with closing(documents_in(spec.files(), spec.field)) as documents:
        document = next(documents)
    if document.ids is not None:
        ids = np.clip(document.ids, 0, subject.vocab_size - 1)
    else:
        text = document.text or " ".join(str(turn.get("content", "")) for turn in document.messages or ())
        ids = np.asarray(subject.tokenizer.encode(text[:20_000], add_special_tokens=False).ids or [0])
    start = [] if subject.bos_id is None else [subject.bos_id]
    return np.concatenate([start, ids])[: config.extraction.context_length].astype(np.int32)


def _sizes(subject: SubjectModel, attached: Mapping[str, AttachedCoder], tokens: NDArray[np.int32]) -> list[CoderSize]:
    from sae_core.encoding import Replica

    found = Replica(subject, list(attached.values())).activations(tokens[None])
    skipped = 1 if len(tokens) > 1 and subject.bos_id is not None else 0  # what is active on the BOS does not count
    return [
        CoderSize(coder.coder.num_latents, max(1.0, float((acts.token >= skipped).sum()) / (len(tokens) - skipped)))
        for coder, acts in zip(attached.values(), found, strict=True)
    ]
