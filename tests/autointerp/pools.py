"""Small pools and a store built by hand, for tests that need no extraction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sae_core.records import Exemplar, LatentStatistics, Origin, Side, Source, WindowPool
from sae_core.token_text import TokenText

Rule = Callable[[Sequence[int], int], float]
"""Activation at one position of a context, given the whole context (BOS first)."""


def make_pool(
    side: Side,
    contexts: Sequence[Sequence[int]],
    documents: Sequence[int],
    rules: Sequence[Rule],
    window: int = 8,
    before: int = 4,
    bos: int | None = 0,
) -> WindowPool:
    """The census of ``contexts`` (each with its BOS, if any) with one latent a rule."""
    rows: list[tuple[NDArray[np.int32], int, int, int, int]] = []
    entries: list[list[tuple[int, int, float]]] = [[] for _ in rules]
    for ordinal, (context, document) in enumerate(zip(contexts, documents, strict=True)):
        for start in range(0, len(context), window):
            body = list(context[start : start + window])
            head = list(context[max(0, start - before) : start])
            row = [-1] * (before - len(head)) + head + body + [-1] * (window - len(body))
            first = before + (1 if bos is not None and start == 0 else 0)
            if first - before >= len(body):
                continue
            for latent, rule in enumerate(rules):
                for i in range(first - before, len(body)):
                    value = rule(context, start + i)
                    if value:
                        entries[latent].append((len(rows), before + i, value))
            rows.append((np.array(row, dtype=np.int32), first, document, ordinal, start))
    flat = [entry for part in entries for entry in part]
    return WindowPool(
        side=side,
        num_windows_side=len(rows),
        tokens=np.stack([row[0] for row in rows]) if rows else np.zeros((0, before + window), dtype=np.int32),
        first_token=np.array([row[1] for row in rows], dtype=np.int32),
        document=np.array([row[2] for row in rows], dtype=np.int32),
        context=np.array([row[3] for row in rows], dtype=np.int32),
        position=np.array([row[4] for row in rows], dtype=np.int32),
        latent_start=np.cumsum([0, *(len(part) for part in entries)]).astype(np.int64),
        entry_window=np.array([e[0] for e in flat], dtype=np.int32),
        entry_column=np.array([e[1] for e in flat], dtype=np.uint8),
        entry_value=np.array([e[2] for e in flat], dtype=np.float32),
        context_tokens=before,
    )


@dataclass
class HandStore:
    """Stands in for an exemplar store; a side that is missing raises when it is read."""

    pools: dict[Side, WindowPool]
    pieces: TokenText
    exemplars_by_key: dict[tuple[int, Side, Origin], list[Exemplar]] = field(default_factory=dict)

    @property
    def source(self) -> Source:
        num_latents = len(self.pools[Side.EXPLAIN].latent_start) - 1
        return Source("hand", "subject", "0", "layers.0", "coder", "f" * 64, num_latents)

    @property
    def corpus_fingerprint(self) -> str:
        return "c" * 64

    @property
    def statistics(self) -> LatentStatistics:
        num_latents = self.source.num_latents
        zeros = np.zeros((3, num_latents), dtype=np.int64)
        fire, windows = zeros.copy(), zeros.copy()
        tokens, num_windows = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
        for side, pool in self.pools.items():
            tokens[side], num_windows[side] = int(pool.counts.sum()), len(pool.tokens)
            for latent in range(num_latents):
                window, _, _ = pool.activations(latent)
                fire[side, latent], windows[side, latent] = len(window), len(np.unique(window))
        return LatentStatistics(
            tokens,
            num_windows,
            fire,
            windows,
            zeros.astype(np.float32),
            zeros.astype(np.float64),
            np.zeros((3, num_latents, 34), dtype=np.int64),
        )

    def exemplars(self, latent: int, side: Side, origin: Origin) -> list[Exemplar]:
        return self.exemplars_by_key.get((latent, side, origin), [])

    def pool(self, side: Side) -> WindowPool:
        if side not in self.pools:
            raise AssertionError(f"the {side.name.lower()} side was read")
        return self.pools[side]


def letters(words: Sequence[str]) -> TokenText:
    """Texts of a small vocabulary; token 0 is the BOS."""
    return TokenText(tuple(word.encode() for word in words), frozenset({0}))
