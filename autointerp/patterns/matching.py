"""Where literal patterns match in a pool."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from autointerp.patterns.index import Ints, PoolIndex, Template

TABLES: Final[frozenset[Template]] = frozenset({(0,), (0, 1), (0, 1, 2), (0, 2), (1,)})
"""Templates that get a gram table of their own; a table costs a sort of all positions, so the others are matched by
filtering the matches of their longest prefix among these."""


def match_literals(index: PoolIndex, template: Template, literals: Ints) -> tuple[NDArray[np.int32], Ints]:
    """``(ordinals, which)``: counting positions that match, and the row of ``literals`` [K, len(template)] each.

    Rows must differ: no position matches two of them. Literals are firing token first.
    """
    length = len(template)
    while length > 1 and template[:length] not in TABLES:
        length -= 1
    base = template[:length]
    if length == len(template):
        grams = index.find(base, literals)
        known = np.flatnonzero(grams >= 0)
        ordinals, which = index.table(base).positions(grams[known])
        return ordinals, known[which]
    # Rows that share their prefix look at the same candidates, once for each row.
    grams = index.find(base, literals[:, :length])
    known = np.flatnonzero(grams >= 0)
    ordinals, which = index.table(base).positions(grams[known])
    which = known[which]
    for depth in range(length, len(template)):
        same = index.tokens_at(ordinals, template[depth]) == literals[which, depth]
        ordinals, which = ordinals[same], which[same]
    return ordinals, which
