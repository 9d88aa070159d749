"""Runs passages that a person gives through the subject, each alone and as a context of the corpus is read.

Letters: P passages, T tokens of one, B passages of a batch, nnz activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sae_core.attachment import AttachedCoder
from sae_core.batches import padded
from sae_core.encoding import Replica
from sae_core.errors import InputError, NonFiniteError
from sae_core.passage_values import (
    Measure,
    Passage,
    PassageActivations,
    PassageValues,
    ordered_activations,
    passage_values,
    reduced,
)
from sae_core.subject import SubjectModel


def tokenize_passages(
    subject: SubjectModel, named_texts: Sequence[tuple[str, str]], bos_id: int | None, context_length: int
) -> list[Passage]:
    """``(name, text)`` as tokens, cut where a context of ``context_length`` tokens (its BOS counted) ends.

    No special token is added beside the BOS. One that a text spells out is read as such and does not count, as in the corpus.

    Raises:
        InputError: a text has no token that counts.
    """
    room = min(context_length, subject.max_context) - (bos_id is not None)
    special = np.asarray(sorted(subject.special_ids), dtype=np.int32)
    # half a surrogate pair is no character to any tokenizer
    clean = [text.encode("utf-8", "replace").decode("utf-8") for _, text in named_texts]
    passages = []
    for (name, _), encoding in zip(
        named_texts, subject.tokenizer.encode_batch_fast(clean, add_special_tokens=False), strict=True
    ):
        ids = np.asarray(encoding.ids, dtype=np.int32)
        read = ids[:room]
        counts = ~np.isin(read, special)
        if not counts.any():
            raise InputError(f"{name} has no text that the subject's tokenizer makes a token of: leave it out.")
        passages.append(Passage(name, read, ids[room:], counts))
    return passages


def passage_activations(
    subject: SubjectModel,
    attached: AttachedCoder,
    passages: Sequence[Passage],
    bos_id: int | None,
    batch_tokens: int = 8192,
) -> PassageActivations:
    """Every activation on the passages, which are few.

    Raises:
        NonFiniteError: the subject or the coder gives NaN or infinite values on one.
        SubjectError: the memory does not hold one passage beside the weights.
    """
    return ordered_activations([_NONE, *_activations(subject, attached, passages, bos_id, batch_tokens)])


def measure_passages(
    subject: SubjectModel,
    attached: AttachedCoder,
    passages: Sequence[Passage],
    bos_id: int | None,
    measure: Measure = "max",
    batch_tokens: int = 8192,
) -> PassageValues:
    """One value for each latent and passage. Memory goes with the values that are not 0, whatever the number of latents.

    Raises:
        NonFiniteError: the subject or the coder gives NaN or infinite values on a passage.
        SubjectError: the memory does not hold one passage beside the weights.
    """
    num_counting = np.asarray([passage.counts.sum() for passage in passages], dtype=np.int64)
    parts = [_NONE]
    for batch in _activations(subject, attached, passages, bos_id, batch_tokens):
        parts.append(reduced(ordered_activations([batch]), num_counting, measure))
    return passage_values(ordered_activations(parts), len(passages))


_NONE = PassageActivations(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))


def _activations(
    subject: SubjectModel,
    attached: AttachedCoder,
    passages: Sequence[Passage],
    bos_id: int | None,
    batch_tokens: int,
) -> Iterator[PassageActivations]:
    """Those of a batch after the other, at tokens that count."""
    before = np.asarray([] if bos_id is None else [bos_id], dtype=np.int32)
    replica = Replica(subject, [attached])
    for batch in _batches([len(before) + len(passage.token_ids) for passage in passages], batch_tokens):
        tokens = padded([np.concatenate([before, passages[i].token_ids]) for i in batch])
        found = replica.activations(tokens)[0]
        counts = np.zeros(tokens.shape, dtype=np.bool_)
        for row, i in zip(counts, batch, strict=True):
            row[len(before) : len(before) + len(passages[i].counts)] = passages[i].counts
        kept = counts.reshape(-1)[found.token]
        row_of, column = np.divmod(found.token[kept], tokens.shape[1])
        value = found.value[kept]
        bad = found.non_finite.copy()
        bad[row_of[~np.isfinite(value)]] = True
        if bad.any():
            first = passages[min(batch[row] for row in np.flatnonzero(bad))]
            raise NonFiniteError(
                f"the subject or the coder gives NaN or infinite values at {', '.join(map(str, attached.read))} on {first.name}: "
                "leave it out, or use a run with a wider subject.dtype."
            )
        yield PassageActivations(
            np.asarray(batch, dtype=np.int32)[row_of],
            (column - len(before)).astype(np.int32),
            found.latent[kept].astype(np.int32),
            value,
        )


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Ordinals of passages of like length, at most ``batch_tokens`` a batch when padded, or a single longer one."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and lengths[i] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
