"""Token patterns: what precedes the tokens on which a latent fires, counted over windows.

A :class:`Pattern` reads a few tokens backwards from the firing token, a :class:`PatternTrie` decides for every
token of a pool by its longest match, :func:`fit_patterns` finds one from counts and probes, and
:func:`describe` writes it down for a person.
"""

from __future__ import annotations

from autointerp.patterns.fitting import FitSettings, fit_patterns
from autointerp.patterns.index import PoolIndex, pool_index
from autointerp.patterns.overlap import OverlapMask, overlap_mask
from autointerp.patterns.reading import describe
from autointerp.patterns.token_rule import token_rule, token_rule_trie
from autointerp.patterns.trie import WILDCARD, Pattern, PatternTrie, Prediction

__all__ = [
    "WILDCARD",
    "FitSettings",
    "OverlapMask",
    "Pattern",
    "PatternTrie",
    "PoolIndex",
    "Prediction",
    "describe",
    "fit_patterns",
    "overlap_mask",
    "pool_index",
    "token_rule",
    "token_rule_trie",
]
