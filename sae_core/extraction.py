"""One streamed pass over (a shard of) the corpus: statistics, exemplars and the window pool of every latent.

Memory depends on the latents, the exemplars and the pool, not on the number of tokens. A shard leaves a
:class:`Partial` on disk; ``sae_core.merging`` adds the shards up to an exemplar store.

Letters: B contexts of a batch, T tokens, D width, L latents, S sides, M firing (window, latent) pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sae_core.attachment import AttachedCoder
from sae_core.errors import NonFiniteError
from sae_core.hashing import hash64, seed_for
from sae_core.partial import ExtractionSettings, Partial
from sae_core.parts.activation import SparseActivations
from sae_core.records import HISTOGRAM_EDGES
from sae_core.reservoir import Firings, PoolRows
from sae_core.subject import SubjectModel
from sae_core.tokens import TokenCorpus


def extract(
    subject: SubjectModel,
    coders: Sequence[AttachedCoder],
    corpus: TokenCorpus,
    contexts: range,
    settings: ExtractionSettings,
    progress: Callable[[int], None] = lambda tokens: None,
) -> list[Partial]:
    """Run the contexts ``contexts`` once and return one :class:`Partial` a coder.

    ``progress`` gets the tokens done. Raises NonFiniteError where the subject gives NaN or infinite activations.
    """
    partials = [Partial.empty(attached.coder.num_latents, settings) for attached in coders]
    hookpoints = list(dict.fromkeys(hookpoint for attached in coders for hookpoint in attached.read))
    special = np.asarray(sorted(subject.special_ids), dtype=np.int64)
    done = 0
    for rows in context_batches(corpus, np.arange(contexts.start, contexts.stop), settings.batch_tokens):
        tokens = padded([corpus.context(int(row)) for row in rows])
        counts = (tokens >= 0) & ~np.isin(tokens, special)
        device_tokens = torch.from_numpy(np.maximum(tokens, 0)).long().to(subject.device)
        captured = subject.capture(device_tokens, hookpoints)
        for attached, partial in zip(coders, partials, strict=True):
            hidden = attached.inputs(captured)
            flat = hidden.reshape(-1, hidden.shape[-1])
            if not bool(torch.isfinite(flat).all()):
                raise _non_finite(attached, hidden, tokens, rows, corpus)
            acts = attached.coder.encode_sparse(flat)
            _update(partial, acts, counts, rows, corpus, settings)
        done += int(counts.sum())
        progress(done)
    return partials


def context_batches(corpus: TokenCorpus, ordinals: NDArray[np.int64], batch_tokens: int) -> list[NDArray[np.int64]]:
    """Contexts grouped so that a batch holds about ``batch_tokens``; equal lengths together, to pad little."""
    lengths = np.diff(corpus.context_start)[ordinals]
    order = np.argsort(-lengths, kind="stable")
    ordinals, lengths = ordinals[order], lengths[order]
    batches: list[NDArray[np.int64]] = []
    start = 0
    while start < len(ordinals):
        size = max(1, batch_tokens // int(lengths[start]))
        batches.append(ordinals[start : start + size])
        start += size
    return batches


def padded(rows: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    """[B, T], right-padded with -1."""
    out = np.full((len(rows), max(len(row) for row in rows)), -1, dtype=np.int32)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out


def _update(
    partial: Partial,
    acts: SparseActivations,
    counts: NDArray[np.bool_],
    rows: NDArray[np.int64],
    corpus: TokenCorpus,
    settings: ExtractionSettings,
) -> None:
    """Add one batch: ``acts`` of its B*T tokens (padded [B, T]), of which those of ``counts`` [B, T] count."""
    num_latents, length = partial.num_latents, settings.window_length
    per_context = settings.windows_per_context
    width = counts.shape[1]
    sides = corpus.context_side[rows].astype(np.int64)

    # Windows of the batch, firing or not.
    padded = np.zeros((len(rows), per_context * length), dtype=bool)
    padded[:, :width] = counts
    window_exists = padded.reshape(len(rows), per_context, length).any(axis=2)
    partial.num_tokens += np.bincount(sides, weights=counts.sum(axis=1), minlength=3).astype(np.int64)
    partial.num_windows += np.bincount(sides, weights=window_exists.sum(axis=1), minlength=3).astype(np.int64)
    window_uid = hash64(corpus.context_uid[rows][:, None].view(np.int64), np.arange(per_context)[None, :])

    token = acts.token.cpu().numpy()
    latent = acts.latent.cpu().numpy()
    value = acts.value.float().cpu().numpy()
    keep = counts.reshape(-1)[token] & (np.abs(value) > settings.tau)
    token, latent, value = token[keep], latent[keep], value[keep]
    if not np.isfinite(value).all():
        raise NonFiniteError(
            f"the coder gives NaN or infinite activations in a batch that holds document {int(corpus.context_document[rows[0]])}: "
            "its weights do not fit this subject's activations."
        )

    # One segment a firing (latent, window) pair; tokens stay in order inside it.
    batch_row, place = np.divmod(token, width)
    local_window = batch_row * per_context + place // length
    order = np.argsort(latent * (len(rows) * per_context) + local_window, kind="stable")
    latent, local_window, value = latent[order], local_window[order], value[order]
    position = (place[order] % length).astype(np.uint8)
    first = np.flatnonzero(np.r_[True, (latent[1:] != latent[:-1]) | (local_window[1:] != local_window[:-1])])
    if len(token) == 0:
        first = first[:0]
    row_length = np.diff(np.r_[first, len(latent)]).astype(np.int32)
    peak = np.maximum.reduceat(np.abs(value), first) if len(first) else np.empty(0, np.float32)
    pair_latent, pair_local = latent[first], local_window[first]
    pair_row, pair_window = np.divmod(pair_local, per_context)
    group = sides[pair_row] * num_latents + pair_latent

    partial.fire_count += np.bincount(group, weights=row_length, minlength=3 * num_latents).astype(np.int64)
    partial.num_windows_firing += np.bincount(group, minlength=3 * num_latents)
    partial.sum_activation += np.bincount(
        np.repeat(group, row_length), weights=value.astype(np.float64), minlength=3 * num_latents
    )
    np.maximum.at(partial.max_activation, group, peak)
    cell = np.searchsorted(HISTOGRAM_EDGES, peak, side="right")
    num_cells = len(HISTOGRAM_EDGES) + 1
    partial.histogram += np.bincount(group * num_cells + cell, minlength=3 * num_latents * num_cells)

    window = rows[pair_row] * per_context + pair_window
    key = hash64(seed_for(settings.seed, "exemplars"), pair_latent, window_uid[pair_row, pair_window].view(np.int64))
    for reservoir, rank in ((partial.top, peak), (partial.sampled, np.zeros_like(peak))):
        chosen = np.flatnonzero(reservoir.admits(group, rank, key))
        entries_of = Firings(group, window, rank, key, row_length, position, value)
        reservoir.add(entries_of.take(chosen))

    pool_key = hash64(seed_for(settings.seed, "pool"), window_uid.view(np.int64))
    by_window = np.argsort(local_window, kind="stable")
    entries_per_window = np.bincount(local_window, minlength=len(rows) * per_context).astype(np.int32)
    batch_rows = PoolRows(
        window=(rows[:, None] * per_context + np.arange(per_context)[None, :]).reshape(-1),
        key=pool_key.reshape(-1),
        row_length=entries_per_window,
        latent=latent[by_window].astype(np.int32),
        position=position[by_window],
        value=value[by_window],
    )
    for side, pool in enumerate(partial.pools):
        mine = window_exists & (sides == side)[:, None] & pool.admits(pool_key)
        pool.add(batch_rows.take(np.flatnonzero(mine.reshape(-1))))


def _non_finite(
    attached: AttachedCoder,
    hidden: torch.Tensor,
    tokens: NDArray[np.int32],
    rows: NDArray[np.int64],
    corpus: TokenCorpus,
) -> NonFiniteError:
    bad = int((~torch.isfinite(hidden)).any(dim=-1).any(dim=-1).nonzero()[0])
    return NonFiniteError(
        f"the subject gives NaN or infinite values at hookpoint {', '.join(map(str, attached.read))}, first in context {int(rows[bad])} "
        f'(document {int(corpus.context_document[rows[bad]])}): its weights are damaged, or the dtype overflows; try subject.dtype = "float32".'
    )
