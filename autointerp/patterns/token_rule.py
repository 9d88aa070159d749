"""The baseline that every label must beat: the tokens on which the latent mostly fires (METHODS 6)."""

from __future__ import annotations

import numpy as np

from autointerp.evidence import LatentEvidence
from autointerp.patterns.counting import ScoredWindows, count_windows, scored_windows
from autointerp.patterns.index import pool_index
from autointerp.patterns.trie import Pattern, PatternTrie
from sae_core.records import Side


def token_rule(evidence: LatentEvidence) -> frozenset[int]:
    """Token ids on which the latent fires on more than half of the occurrences on the explain side of the pool."""
    return frozenset(pattern.symbols[0] for pattern in token_rule_trie(evidence).patterns)


def token_rule_trie(evidence: LatentEvidence) -> PatternTrie:
    """The token rule as a trie of single tokens; empty where no token qualifies."""
    index = pool_index(evidence.store.pool(Side.EXPLAIN))
    table = index.table((0,))
    ordinals, values = index.firing(evidence.latent)
    gram = table.gram[ordinals]
    hits = np.bincount(gram, minlength=len(table.count))
    total = np.bincount(gram, weights=values, minlength=len(table.count))
    chosen = np.flatnonzero(2 * hits > table.count)
    tokens = index.literals((0,), chosen)[:, 0]
    return PatternTrie(
        tuple(
            Pattern((int(token),), True, float(total[g] / table.count[g]), int(table.count[g]), int(hits[g]))
            for token, g in zip(tokens, chosen, strict=True)
        )
    )


def rule_values(rule: PatternTrie, latent: int, windows: ScoredWindows) -> dict[str, float | int | None]:
    """What a label must beat: precision, recall and F1 of the token rule, counted on the scored windows; None where not defined."""
    counts = count_windows(rule, latent, windows)
    return {
        "token_rule_precision": _share(counts.num_both, counts.num_predicted),
        "token_rule_recall": _share(counts.num_both, counts.num_firing),
        "token_rule_f1": _share(2 * counts.num_both, counts.num_predicted + counts.num_firing),
        "token_rule_num_tokens": len(rule.patterns),
    }


def counted_rule(evidence: LatentEvidence) -> dict[str, float | int | None]:
    """``rule_values`` of one latent on its scored side."""
    store = evidence.store
    windows = scored_windows(store.pool(evidence.scored_side), store.pool(Side.EXPLAIN))
    return rule_values(token_rule_trie(evidence), evidence.latent, windows)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
