"""Runs texts that a language model wrote, each alone after the BOS, and keeps what the latents they are for do on them.

Nothing about such texts can be relied on: empty ones, very long ones and half characters are
cut or give no tokens, and never end a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sae_core.attachment import AttachedCoder
from sae_core.encoding import Replica
from sae_core.subject import SubjectModel
from sae_core.tried_texts import TriedText

MOST_TOKENS = 256
"""Longest text that is run, the BOS not counted; the rest of a longer one is cut off."""
_MOST_CHARACTERS = 64 * MOST_TOKENS
"""Longest text that is tokenized: a tokenizer takes its time with a text of megabytes."""


def try_texts(
    subject: SubjectModel,
    attached: AttachedCoder,
    latent_texts: Mapping[int, Sequence[tuple[int, str]]],
    batch_tokens: int = 8192,
) -> list[TriedText]:
    """``latent -> (round, text)`` to what each latent does on its texts, latents ascending, texts as they were given.

    Only the BOS is put before a text, no other special token anywhere; a special token that the text spells out has activation 0,
    as in the corpus. A text that is empty or only white space, or on which the subject's activations are not finite, has no tokens.
    """
    wanted = [(latent, number, text) for latent in sorted(latent_texts) for number, text in latent_texts[latent]]
    ids = [_tokens(subject, text) for _, _, text in wanted]
    # as in the probe stage: without a BOS rule the first token would be measured as the attention sink that it is
    first = subject.bos_id if subject.bos_id is not None else min(subject.special_ids, default=None)
    before = np.asarray([] if first is None else [first], dtype=np.int32)
    replica = Replica(subject, [attached])
    nothing = np.empty(0, dtype=np.float32)
    tried = [TriedText(*of, row[:0], nothing) for of, row in zip(wanted, ids, strict=True)]
    for batch in _batches([len(row) and len(row) + len(before) for row in ids], batch_tokens):
        tokens = np.full((len(batch), max(len(ids[i]) for i in batch) + len(before)), -1, dtype=np.int32)
        for row, i in zip(tokens, batch, strict=True):
            row[: len(before)] = before
            row[len(before) : len(before) + len(ids[i])] = ids[i]
        found = replica.activations(tokens)[0]
        for place, i in enumerate(batch):
            latent, number, text = wanted[i]
            own = slice(*np.searchsorted(found.token, [place * tokens.shape[1], (place + 1) * tokens.shape[1]]))
            values = np.zeros(tokens.shape[1], dtype=np.float32)
            mine = found.latent[own] == latent
            values[found.token[own][mine] - place * tokens.shape[1]] = found.value[own][mine]
            values[np.isin(tokens[place], sorted(subject.special_ids))] = 0
            if not found.non_finite[place]:
                tried[i] = TriedText(latent, number, text, ids[i], values[len(before) : len(before) + len(ids[i])])
    return tried


def _tokens(subject: SubjectModel, text: str) -> NDArray[np.int32]:
    """[T] a text's tokens, none for one that holds nothing."""
    # half a surrogate pair is no character to any tokenizer
    clean = text[:_MOST_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
    if not clean.strip():
        return np.empty(0, dtype=np.int32)
    most = min(MOST_TOKENS, subject.max_context - 1)
    return np.asarray(subject.tokenizer.encode(clean, add_special_tokens=False).ids[:most], dtype=np.int32)


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Ordinals of rows of like length, at most ``batch_tokens`` a batch when padded; those of length 0 are left out."""
    batch: list[int] = []
    for i in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: (lengths[i], i)):
        if batch and lengths[i] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
