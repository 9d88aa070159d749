"""One streamed pass over (a shard of) the corpus: statistics, exemplars and the window pool of every latent.

Memory depends on the latents, the exemplars and one shard's part of the pool, not on the number of tokens. A shard
leaves a :class:`Partial` on disk; :mod:`sae_core.merging` adds the shards up to an exemplar store.

Letters: B contexts of a batch, T tokens of its longest, L latents, nnz activations of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from sae_core.accumulation import NUM_SIDES, Accumulator, Windows, beyond_sums, pool_rows
from sae_core.attachment import AttachedCoder
from sae_core.batches import block_batches, padded
from sae_core.encoding import BatchActivations, Replica, encode_batches
from sae_core.errors import NonFiniteError
from sae_core.fixed_point import LARGEST
from sae_core.non_finite import subject_sentence
from sae_core.partial import ExtractionSettings, Firings, Partial, PoolRows
from sae_core.pool_sample import PoolSample, window_uids
from sae_core.subject import SubjectModel
from sae_core.tokens import TokenCorpus

_CPU_BATCH, _GPU_BATCH = 2_048, 32_768
"""Tokens of a forward pass: on a CPU its tensors are best as small as keeps the matrix products efficient."""
_LEAST_LATENTS_A_THREAD = 256


def extract(
    subject: SubjectModel,
    coders: Sequence[AttachedCoder],
    corpus: TokenCorpus,
    contexts: range,
    settings: ExtractionSettings,
    progress: Callable[[int], None] = lambda tokens: None,
) -> list[Partial]:
    """Run the contexts ``contexts`` once and return one :class:`Partial` a coder, of all its latents.

    ``progress`` gets the tokens done. Errors: those of :meth:`Extractor.extract`.
    """
    return Extractor([Replica(subject, coders)], corpus, settings).extract(contexts, progress)


class Extractor:
    """Extracts shards of a corpus one after the other.

    What it has seen of earlier shards lets it leave out of a later one what cannot be among the whole's exemplars, so
    a shard's partial holds only its share of them. It must therefore be thrown away after an error, and all shards that it
    has done must be merged.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        corpus: TokenCorpus,
        settings: ExtractionSettings,
        latents: Sequence[range] | None = None,
    ) -> None:
        """``latents``: of each coder, the range of latents to keep (all, without it); the others cost no memory.

        ``replicas``: the same subject and coders once for each device.
        """
        self._replicas = list(replicas)
        self._corpus = corpus
        self._settings = settings
        coders = replicas[0].coders
        self._latents = list(latents or [range(attached.coder.num_latents) for attached in coders])
        self._threads = torch.get_num_threads()
        self._workers = ThreadPoolExecutor(self._threads, thread_name_prefix="accumulate")
        self._accumulators = [
            [Accumulator(part, settings) for part in _split(kept, self._threads)] for kept in self._latents
        ]
        self._pool = PoolSample(corpus, settings, replicas[0].subject.special_ids)
        self._batch_tokens = settings.batch_tokens or (_GPU_BATCH if replicas[0].is_gpu else _CPU_BATCH)
        self._done: list[range] = []
        self._special = np.asarray(sorted(replicas[0].subject.special_ids), dtype=np.int64)

    def follow(self, corpus: TokenCorpus) -> None:
        """Go on with the same corpus, of which there may be more by now."""
        self._corpus = corpus
        self._pool.follow(corpus)

    def has_done(self, contexts: range) -> bool:
        """Whether some of the contexts were extracted already: a second time they would crowd out themselves."""
        return any(contexts.start < done.stop and done.start < contexts.stop for done in self._done)

    @property
    def nbytes(self) -> int:
        """Memory that the statistics and exemplars hold by now."""
        return sum(part.nbytes for parts in self._accumulators for part in parts)

    def extract(self, contexts: range, progress: Callable[[int], None] = lambda tokens: None) -> list[Partial]:
        """Run a shard and return one :class:`Partial` a coder, which holds the range of latents that was asked.

        ``progress`` gets the tokens done. Errors: NonFiniteError for NaN, infinite or absurdly large activations, unless
        the settings skip them.
        """
        assert not self.has_done(contexts)
        self._done.append(contexts)
        num_coders = len(self._latents)
        tokens_done = 0
        num_tokens = np.zeros((num_coders, NUM_SIDES), np.int64)
        num_windows = np.zeros((num_coders, NUM_SIDES), np.int64)
        skipped = np.zeros((num_coders, 2), np.int64)
        pools: list[list[PoolRows]] = [[_no_rows()] for _ in range(num_coders)]
        batches = block_batches(self._corpus, contexts, self._batch_tokens)
        for number, (rows, tokens, found) in enumerate(self._encoded(batches)):
            counts = (tokens >= 0) & ~np.isin(tokens, self._special)
            windows = Windows(
                contexts=rows,
                side=self._corpus.context_side[rows].astype(np.int64),
                uid=window_uids(self._corpus, rows, self._settings.windows_per_context),
                counts=counts,
                length=self._settings.window_length,
            )
            waiting: list[Future[None]] = []
            sampling: list[Future[PoolRows]] = []
            for coder in range(num_coders):
                kept, lost = self._finite(windows, found[coder], coder, tokens, number)
                skipped[coder] += lost
                exist = kept.exist
                num_tokens[coder] += _by_side(kept.side, kept.counts.sum(axis=1))
                num_windows[coder] += _by_side(kept.side, exist.sum(axis=1))
                acts = found[coder]
                chosen = exist & self._pool.holds(kept.uid, kept.side)
                entries = (acts.token, acts.latent, acts.value, kept)
                waiting += [self._workers.submit(part.add, *entries) for part in self._accumulators[coder]]
                of_pool = (chosen, self._latents[coder], self._settings.tau)
                sampling.append(self._workers.submit(pool_rows, *entries, *of_pool))
            for future in waiting:
                future.result()
            for pool, sampled in zip(pools, sampling, strict=True):
                pool.append(sampled.result())
            tokens_done += int(counts.sum())
            progress(tokens_done)
        return [
            self._partial(coder, contexts, num_tokens[coder], num_windows[coder], skipped[coder], pools[coder])
            for coder in range(num_coders)
        ]

    def _encoded(
        self, batches: list[NDArray[np.int64]]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32], list[BatchActivations]]]:
        def token_batches() -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
            for rows in batches:
                yield rows, padded([self._corpus.context(int(row)) for row in rows])

        yield from encode_batches(self._replicas, token_batches())

    def _finite(
        self, windows: Windows, acts: BatchActivations, coder: int, tokens: NDArray[np.int32], number: int
    ) -> tuple[Windows, tuple[int, int]]:
        """The windows without contexts of which an activation is not finite, and how many contexts and tokens that cost."""
        bad = acts.non_finite
        if beyond_sums(acts.value):
            width = windows.counts.shape[1]
            wrong = ~(np.abs(acts.value) < LARGEST) & windows.counts.reshape(-1)[acts.token]
            bad = bad.copy()
            bad[np.unique(acts.token[wrong] // width)] = True
        if not bad.any():
            return windows, (0, 0)
        if not self._settings.skip_non_finite:
            first = int(np.flatnonzero(bad)[0])
            raise NonFiniteError(self._sentence(windows, acts, coder, tokens, number, first))
        counts = windows.counts & ~bad[:, None]
        return replace(windows, counts=counts), (int(bad.sum()), int((windows.counts & bad[:, None]).sum()))

    def _sentence(
        self,
        windows: Windows,
        acts: BatchActivations,
        coder: int,
        tokens: NDArray[np.int32],
        number: int,
        first: int,
    ) -> str:
        context = int(windows.contexts[first])
        place = f"first in batch {number}, context {context} (document {int(self._corpus.context_document[context])}) of the corpus"
        replica = self._replicas[0]
        if acts.non_finite[first]:
            row = tokens[first]
            modules = (each.first_bad_module(row[row >= 0]) for each in self._replicas)
            module = next((name for name in modules if name is not None), None)
            return subject_sentence(replica.subject, replica.coders[coder], module, place)
        return (
            f"the coder at {', '.join(map(str, replica.coders[coder].read))} gives activations that are NaN, infinite or beyond "
            f"{LARGEST:.0e}, {place}, though the subject's are finite: its weights do not fit this subject, or its dtype "
            'overflows; give the coder of this subject, or extraction.non_finite = "skip" to leave such contexts out and count them.'
        )

    def _partial(
        self,
        coder: int,
        contexts: range,
        num_tokens: NDArray[np.int64],
        num_windows: NDArray[np.int64],
        skipped: NDArray[np.int64],
        pools: list[PoolRows],
    ) -> Partial:
        per_context = self._settings.windows_per_context
        edges = (contexts.start * per_context, contexts.stop * per_context)
        futures = [
            self._workers.submit(part.end_shard, *edges, num_tokens, num_windows, skipped, _no_rows())
            for part in self._accumulators[coder]
        ]
        parts = [future.result() for future in futures]
        return Partial(
            first_latent=self._latents[coder].start,
            num_tokens=num_tokens,
            num_windows=num_windows,
            skipped=skipped,
            fire_count=np.concatenate([part.fire_count for part in parts]),
            num_windows_firing=np.concatenate([part.num_windows_firing for part in parts]),
            max_activation=np.concatenate([part.max_activation for part in parts]),
            sum_high=np.concatenate([part.sum_high for part in parts]),
            sum_low=np.concatenate([part.sum_low for part in parts]),
            histogram=np.concatenate([part.histogram for part in parts]),
            firings=Firings.concatenate([part.firings for part in parts]),
            pool=PoolRows.concatenate(pools),
        )


def _split(latents: range, threads: int) -> list[range]:
    """``latents`` cut among threads, each of which has all that there is to know about its own."""
    parts = max(1, min(threads, len(latents) // _LEAST_LATENTS_A_THREAD))
    edges = [latents.start + len(latents) * part // parts for part in range(parts + 1)]
    return [range(edges[part], edges[part + 1]) for part in range(parts)]


def _by_side(side: NDArray[np.int64], amount: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.bincount(side, weights=amount, minlength=NUM_SIDES).astype(np.int64)


def _no_rows() -> PoolRows:
    return PoolRows(
        np.empty(0, np.int64),
        np.empty(0, np.int32),
        np.empty(0, np.int32),
        np.empty(0, np.uint8),
        np.empty(0, np.float32),
    )
